"""Write the generated parts of the documentation, or check that they are up to date.

    python docs/generate.py            writes README.md (between its markers), docs/methods.md, docs/coverage.md
    python docs/generate.py --check    changes nothing; exits with 1 and names what is out of date

Everything comes from the recipes, their cards and the parts, so no fact about a method is written twice. The numbers of
the quickstart come from docs/quickstart/report.json, which `prunus quickstart` wrote; without that file the README has
no such section.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunus import methods, parts
from prunus.core.errors import PrunusError
from prunus.core.part import SLOTS, Part
from prunus.core.recipe import Recipe
from prunus.report.markdown import conditions, escaped, summary, table
from prunus.report.methods_table import methods_markdown
from prunus.report.records import Report
from prunus.report.sheet import sheet

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))  # this file is also loaded from elsewhere, by its path
from systems import systems_section, told  # noqa: E402

NOTICE = "<!-- Written by docs/generate.py from the code; edit the recipes or that script instead. -->"
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


# Words


def linked(text: str) -> str:
    """Text with its arXiv numbers as links."""
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", escaped(text))


def ours(slot: str) -> list[str]:
    """The parts of a slot that Prunus itself defines; a process may have registered others."""
    if slot not in SLOTS:
        return []
    return sorted(name for name, kind in Part.known(slot).items() if kind.__module__.startswith("prunus."))


# The documents


def method_page() -> str:
    """docs/methods.md: a section per method."""
    names = sorted((*methods.names(), *methods.procedures()))
    text = [
        "# The methods\n",
        NOTICE + "\n",
        f"{len(names)} methods, each one file in `src/prunus/methods`. Most are recipes, records of named parts;",
        f"{len(methods.procedures())} are procedures, algorithms that no such record can tell. Everything below is",
        "read off them; `prunus methods show NAME` prints one of them in the terminal. What is said to be measured is",
        "one small problem (`benchmarks/methods.py`): it shows that a method runs and what it costs, and ranks none.\n",
        methods_markdown([methods.find(n) for n in names], [methods.card(n) for n in names]),
    ]
    for name in names:
        page = sheet(methods.find(name), methods.card(name), methods.measured(name))
        text += [f"## {name}\n", f"**{escaped(page.title)}.** {linked(page.source)}\n", escaped(page.sentence) + "\n"]
        text += [f"- What is computed: {told(page.formula)}."] if page.formula else []
        text += [f"- Use it when {escaped(page.use_when)}.", f"- Avoid it when {escaped(page.avoid_when)}."]
        if page.deviations:
            text.append(f"- Differs from its paper or code: {escaped(page.deviations)}")
        text.append(f"- In 1,000 steps: {page.timeline}. Expects {methods.find(name).on} weights.")
        text += [f"- Evidence for {line}." for line in page.cost]
        if page.measured:
            text.append(f"- Measured: {'; '.join(f'{what}: {escaped(value)}' for what, value in page.measured)}.")
        if page.parts:
            rows = [(f"`{slot}`", f"`{part}`", told(what)) for slot, part, what in page.parts]
            text += ["", table(("Slot", "Part", "Meaning"), rows)]
        else:
            text.append("")
    return "\n".join(text)


@dataclass(frozen=True)
class Setting:
    """A leaf of the survey's taxonomy and how the code is asked whether it is there.

    Exactly one of `has`, `package` and `slot` is given; with none of them the leaf is said to be missing by hand.
    """

    section: str
    name: str
    has: Callable[[Recipe], bool] | None = None
    package: str = ""
    slot: str = ""
    note: str = ""

    def found(self) -> tuple[str, str]:
        """(how much is there, which)."""
        if self.has is not None:
            names = [n for n in methods.names() if self.has(methods.get(n))]
            return f"{len(names)}", ", ".join(f"[{n}](methods.md#{n})" for n in names) or self.note or "none by name"
        if self.package:
            there = find_spec(f"prunus.{self.package}") is not None
            return ("yes", f"`prunus.{self.package}`") if there else ("0", self.note or "not there yet")
        if self.slot:
            parts_there = ours(self.slot)
            return f"{len(parts_there)}", ", ".join(f"`{p}`" for p in parts_there) or self.note or "not there yet"
        return "0 *", self.note or "not there yet"


def rewinds(recipe: Recipe) -> bool:
    """Whether a recipe's timeline goes back to an earlier step."""
    return any(e.rewind is not None or e.replay is not None for e in recipe.timeline())


def scored_by(*names: str) -> Callable[[Recipe], bool]:
    """Whether a recipe's criterion is one of these classes."""
    return lambda r: type(r.criterion).__name__ in names


def presses(recipe: Recipe) -> bool:
    """Whether something drives units to zero while training; what regrows besides is counted by that."""
    return recipe.grow is None and (recipe.penalty is not None or recipe.prox is not None)


SETTINGS = (
    Setting("3.1", "Unstructured", lambda r: r.structure == "unstructured"),
    Setting("3.2", "Structured", lambda r: r.structure == "structured"),
    Setting("3.3", "Semi-structured (patterns, N:M)", lambda r: r.structure == "semi-structured"),
    Setting("4.1", "Before training", lambda r: r.when == "before"),
    Setting("4.2.1", "During, by sparsity regularization", lambda r: r.when == "during" and presses(r)),
    Setting("4.2.2", "During, dynamic sparse training", lambda r: r.when == "during" and r.grow is not None),
    Setting(
        "4.2.3",
        "During, by scores",
        lambda r: r.when == "during" and not presses(r) and r.grow is None,
    ),
    Setting("4.3.1", "After, lottery tickets and variants", lambda r: r.when == "after" and rewinds(r)),
    Setting("4.3.2", "After, other scores", lambda r: r.when == "after" and not rewinds(r)),
    Setting(
        "4.3.3",
        "After, by sparsity regularization",
        lambda r: r.when == "after" and presses(r),
        note='none by name; an edit: `replace(methods.network_slimming, on="pretrained")`',
    ),
    Setting("4.3.4", "Early in training (early-bird tickets)", lambda r: any(e.settle for e in r.timeline())),
    Setting("4.3.5", "Post-training with reconstruction (SparseGPT)", slot="reconstruct"),
    Setting("4.4", "At run time, per input", package="dynamic"),
    Setting("5.1", "Criterion: magnitude", scored_by("Magnitude", "SignSplitMagnitude")),
    Setting(
        "5.2",
        "Criterion: norms and distances of units",
        lambda r: (
            r.structure == "structured" and type(r.criterion).__name__ in ("Magnitude", "L2Norm", "GeometricMedian")
        ),
    ),
    Setting(
        "5.3",
        "Criterion: sensitivity, saliency",
        scored_by("ConnectionSensitivity", "SynapticSaliency", "NormScale"),
    ),
    Setting("5.4", "Criterion: loss change, gradient flow", scored_by("TaylorWeight", "TaylorGate", "GradientSignal")),
    Setting("6.1", "Learned: sparsity regularization", lambda r: r.penalty is not None),
    Setting("6.1", "Learned: gates (L0, hard concrete)", slot="gate"),
    Setting("6.1", "Learned: proximal steps, ADMM", slot="prox"),
    Setting("6.2", "Learned: meta-learning", package="search"),
    Setting("6.3", "Learned: graph neural networks", package="search"),
    Setting("6.4", "Learned: reinforcement learning", package="search"),
    Setting("7.2", "One-shot", lambda r: r.pace == "one_shot"),
    Setting("7.2", "Iterative or gradual", lambda r: r.pace in ("iterative", "gradual")),
    Setting("7.2", "Prune and grow", lambda r: r.pace == "prune_and_grow"),
    Setting("7.3", "Data-free", lambda r: r.data_free),
    Setting("7.3", "Scores read no data, weights were trained", lambda r: r.reads == "nothing" and not r.data_free),
    Setting("7.3", "Scores read inputs only", lambda r: r.reads == "inputs"),
    Setting("7.3", "Scores read inputs and labels", lambda r: r.reads == "labels"),
    Setting("7.4", "On initialized weights", lambda r: r.on == "initialized"),
    Setting("7.4", "On pretrained weights", lambda r: r.on == "pretrained"),
    Setting("7.5", "Recovery as a part (scratch, distillation)", slot="recover"),
    Setting(
        "7.6",
        "Transfer of masks between tasks",
        note="`prunus.transfer`, to another head, depth or task; `ticket_transfer` is the procedure",
    ),
    Setting("7.8", "Global ranking", lambda r: r.scope == "global"),
    Setting("7.8", "Layer-wise densities", lambda r: r.scope == "local"),
    Setting("8", "With quantization, low rank, distillation or architecture search", package="fuse"),
    Setting("9.1", "Advice on which method to take", package="advise", note="[choose.md](choose.md), by hand"),
)
# The slots that the design names; those that SLOTS lacks are not written yet.
DESIGNED = (
    *("granularity", "criterion", "allocate", "schedule", "grow", "penalty"),
    *("prox", "gate", "reconstruct", "prepare", "recover"),
)


COVERAGE = """# What of the field is there

{notice}

The settings of Cheng, Zhang & Shi, *A Survey on Deep Neural Network Pruning: Taxonomy, Comparison, Analysis, and
Recommendations* ([arXiv:2308.06767](https://arxiv.org/abs/2308.06767)), by its section numbers, and the methods of
Prunus in each. The counts are made from the recipes: a method is counted under every setting that it is in. A method
can also be moved to another setting by an edit, which is not counted.

{there} of {all} settings have at least one method; {missing} have none yet. A star means: stated by hand, there being
nothing in the code to ask.

{settings}
## The vocabulary

Parts by slot. Every part can stand in any recipe where its evidence is defined.

{vocabulary}
{systems}"""


def coverage_page() -> str:
    """docs/coverage.md: the survey's taxonomy against the code."""
    parts.load_all()
    found = [(s, *s.found()) for s in SETTINGS]
    rows = [(s.section, escaped(s.name), count, which) for s, count, which in found]
    missing = sum(count.startswith("0") for _, count, _ in found)
    vocabulary = [
        (f"`{slot}`", str(len(known)), ", ".join(f"`{n}`" for n in known) or "not there yet")
        for slot in dict.fromkeys((*DESIGNED, *SLOTS))
        for known in [ours(slot)]
    ]
    return COVERAGE.format(
        notice=NOTICE,
        there=len(rows) - missing,
        all=len(rows),
        missing=missing,
        settings=table(("Section", "Setting", "Methods", "Which"), rows, right=(2,)),
        vocabulary=table(("Slot", "Parts", "Which"), vocabulary, right=(1,)),
        systems=systems_section(),
    )


def methods_section() -> str:
    """The README's table of methods."""
    names = sorted((*methods.names(), *methods.procedures()))
    grouped: dict[tuple[str, str], list[str]] = {}
    for name in names:
        where = methods.find(name).taxonomy()
        grouped.setdefault((where["when"], where["structure"]), []).append(f"[{name}](docs/methods.md#{name})")
    rows = [
        (f"{when} training", structure, ", ".join(grouped[when, structure]))
        for when in ("before", "during", "after")
        for structure in ("unstructured", "semi-structured", "structured")
        if (when, structure) in grouped
    ]
    text = (
        f"{len(names)} methods. [docs/methods.md](docs/methods.md) has each one's formula, parts, cost and deviations;"
    )
    more = "[docs/coverage.md](docs/coverage.md) goes through the systems that the surveys name, one by one.\n"
    return f"{text}\n{more}\n" + table(("When", "Removes", "Methods"), rows)


def quickstart_section(root: Path = ROOT) -> str:
    """The README's numbers and picture: empty until a quickstart's report lies in docs/quickstart."""
    file, picture = root / "docs" / "quickstart" / "report.json", root / "docs" / "report.png"
    text = []
    if picture.is_file():
        text.append("![The report of a quickstart run](docs/report.png)\n")
    if file.is_file():
        report = Report.from_json(file.read_text(encoding="utf-8"))
        timed = [m.latency for m in report.methods if m.latency is not None]
        machine = ", ".join(f"{k} {v}" for k, v in report.environment.items())
        made = f"One run, seed {report.seed}, {report.created[:10]}: {escaped(report.subtitle)}."
        where = f"Latency: {conditions(timed[0])}. " if timed else ""
        source = "From [docs/quickstart/report.json](docs/quickstart/report.json)."
        text += [f"{made} Every ratio is dense / pruned.\n", summary(report.methods)]
        text += [
            f"{where}Machine: {escaped(machine)}.\n",
            *(f"- {escaped(n)}" for n in report.notes),
            "",
            source + "\n",
        ]
    return "\n".join(text)


def between_markers(text: str, name: str, content: str) -> str:
    """`text` with what lies between the markers of a section replaced."""
    start, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise SystemExit(f"README.md must hold {start} and {end} once each")
    head, _, rest = text.partition(start)
    tail = rest.partition(end)[2]
    return f"{head}{start}\n\n{content}\n{end}{tail}" if content else f"{head}{start}\n{end}{tail}"


def documents(root: Path = ROOT) -> dict[str, str]:
    """Path under the root -> what the file should hold."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    readme = between_markers(readme, "quickstart", quickstart_section(root))
    readme = between_markers(readme, "methods", methods_section())
    return {"README.md": readme, "docs/methods.md": method_page(), "docs/coverage.md": coverage_page()}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if anything is out of date")
    options: Any = parser.parse_args(arguments)
    try:
        wanted = documents(root)
    except PrunusError as error:
        print(f"docs/quickstart/report.json: {error}", file=sys.stderr)
        return 1
    stale = [
        name
        for name, text in wanted.items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != text
    ]
    if options.check:
        for name in stale:
            print(f"{name} is out of date: run python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (root / name).write_text(wanted[name], encoding="utf-8")
        print(f"written: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
