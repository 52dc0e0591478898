"""A contrast, and the list of all of them, as GitHub Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from prunus.report import figures
from prunus.report.contrast_page import ALIKE, Ours, by_section, counted, ours, places, plural, shown_in_survey
from prunus.report.contrast_records import ContrastRecord, PointRecord
from prunus.report.markdown import escaped, table
from prunus.report.records import Value


def document(r: ContrastRecord) -> str:
    """The whole report but for its pictures."""
    parts = [f"# {escaped(r.title)}\n", f"{escaped(r.question)}\n"]
    parts.append(
        f"Survey, section {escaped(r.section)}. Tier {escaped(r.tier)}, which may be taken for: {escaped(r.says)}. "
        f"{plural(len(r.problems), 'problem')}, {plural(len(r.seeds), 'seed')}, "
        f"{r.done:,} of {plural(r.planned, 'run')}.\n"
    )
    if told := qualified(r):
        parts.append("\n".join(f"- **{escaped(line)}**" for line in told) + "\n")
    parts += ["## Verdicts\n", verdicts(r), "## Beside the survey\n", *_beside(r), "## All numbers\n"]
    parts.append("Ratios are dense / kept; differences to the dense network are taken seed by seed.\n")
    parts += [part for p in r.problems for part in (f"### {escaped(p.name)}\n", numbers(r, p.name))]
    if r.similarity:
        parts += ["## How alike the masks are\n", f"{ALIKE}\n", alike(r)]
    parts += ["## Protocol and hardware\n", _facts("Protocol", r.protocol), _facts("Made on", r.environment)]
    parts += [_facts(f"{p.name}: {p.network} on {p.data}", p.facts) for p in r.problems]
    parts += ["## Arms\n", _arms(r)]
    if r.failed:
        rows = [
            (
                f"`{x.key}`",
                escaped(x.problem),
                escaped(x.method),
                f"{x.keep:.3g}",
                f"{x.rate:g}",
                str(x.seed),
                escaped(x.error),
            )
            for x in r.failed
        ]
        parts += ["## Failed runs\n", table(("Run", "Problem", "Method", "Kept", "Rate", "Seed", "Error"), rows)]
    parts += [_facts(f"Not mixed in: {plural(e.runs, 'run')} made on {e.key}", e.facts) for e in r.elsewhere]
    if r.notes:
        parts += ["## Notes\n", "\n".join(f"- {escaped(note)}" for note in r.notes) + "\n"]
    if r.command:
        parts.append("\n".join(f"    {line}" for line in r.command.splitlines()) + "\n")
    parts.append(f"Prunus {escaped(r.version)}, {escaped(r.created)}.\n")
    return "\n".join(parts)


def qualified(r: ContrastRecord) -> list[str]:
    """Everything that makes the contrast less than it should be."""
    told = [f"Nothing can be concluded, runs began with different weights: {line}" for line in r.unequal]
    told += r.warnings
    if r.done < r.planned:
        told.append(f"{plural(r.planned - r.done, 'run')} of {r.planned:,} not there")
    if r.failed:
        told.append(f"{plural(len(r.failed), 'run')} failed")
    told += [f"{plural(e.runs, 'run')} of other code or another machine ({e.key}), not mixed in" for e in r.elsewhere]
    return told


def verdicts(r: ContrastRecord) -> str:
    """A line per claim, and one per problem where there are several."""
    rows = []
    for c in r.claims:
        for problem, j in (("all", c.verdict), *c.by_problem.items()):
            first = problem == "all"
            rows.append(
                (
                    escaped(c.text) if first else "",
                    escaped(problem),
                    f"**{escaped(j.word)}**" if first else escaped(j.word),
                    escaped(j.told),
                    escaped(c.unit) if first else "",
                    escaped(c.survey) if first else "",
                )
            )
    if not rows:
        return "This contrast claims nothing.\n"
    return table(("Claim", "Problem", "Verdict", "Difference", "In", "The survey"), rows)


def _beside(r: ContrastRecord) -> list[str]:
    parts = []
    for quoted in r.quoted:
        width = len(quoted.columns)
        parts.append(f"{escaped(quoted.title)}:\n")
        parts.append(
            table(
                [escaped(c) for c in quoted.columns],
                [[escaped(c) for c in row] for row in quoted.rows],
                range(1, width),
            )
        )
        parts += [_own(ours(r, p.name, quoted), r) for p in r.problems]
    if not r.quoted:
        where = shown_in_survey(r.section)
        shown = f"shows this as {' and '.join(where)}, without" if where else "prints no"
        parts.append(f"The survey {shown} numbers that could be set beside ours.\n")
        parts += [_own(ours(r, p.name), r) for p in r.problems]
    return parts


def _own(found: Ours, r: ContrastRecord) -> str:
    dense = f"; dense {_spread(found.dense)}" if found.dense else ""
    title = f"Prunus, {r.tier} tier: {found.network} on {found.data}, test accuracy in %, mean ± std (best){dense}"
    rows = [
        (escaped(name), *("not run" if p is None else f"{_spread(p)} ({100 * p.best:.2f})" for p in points))
        for name, points in found.rows
    ]
    header = ("Method", *(f"{figures.percent(1 - keep, 1)} removed" for keep in found.keeps))
    return f"{escaped(title)}:\n\n" + table(header, rows, range(1, len(header)))


def numbers(r: ContrastRecord, problem: str) -> str:
    """Every point of a problem."""
    rows = [
        (
            escaped(a.name) + (" (baseline)" if a.baseline else ""),
            f"{100 * p.keep:.3g}",
            _spread(p),
            f"{100 * p.best:.2f}",
            ", ".join(f"{100 * run.test:.2f}" for run in p.runs),
            figures.points(0.0, p.delta) or "–",
            "–" if p.top5 is None else f"{100 * p.top5:.2f}",
            figures.times(p.params_ratio),
            figures.times(p.macs_ratio),
            f"{100 * p.sparsity:.1f}",
            "–" if p.effective is None else f"{100 * p.effective:.1f}",
            str(p.collapsed),
        )
        for a in r.arms
        for p in r.found(problem, a.name)
    ]
    header = (
        *("Arm", "Kept, asked, %", "Accuracy, %", "Best", "Runs", "To dense", "Top 5"),
        *("Parameters, dense / kept", "MACs, dense / kept", "Sparsity, %", "Effective, %", "Runs with empty layers"),
    )
    return table(header, rows, (1, 2, 3, 5, 6, 7, 8, 9, 10, 11)) if rows else "No run yet.\n"


def alike(r: ContrastRecord) -> str:
    """How alike the masks are, a table per problem and point."""
    parts = []
    for s in r.similarity:
        rows = [
            (escaped(name), *("–" if v is None else f"{v:.2f}" for v in values))
            for name, values in zip(s.arms, s.overlap, strict=True)
        ]
        told = f"{s.problem}, {100 * s.keep:.3g} % kept (random masks: {s.chance:.2f})"
        parts.append(f"{escaped(told)}:\n\n" + table(("", *map(escaped, s.arms)), rows, range(1, len(s.arms) + 1)))
    return "\n".join(parts)


def _arms(r: ContrastRecord) -> str:
    rows = [
        (
            escaped(a.name) + (" (baseline)" if a.baseline else ""),
            escaped(", ".join(a.taxonomy.values())) or "nothing is removed",
            escaped(a.starts or "initial weights"),
            escaped(a.training),
            escaped("; ".join(f"{slot} {part}" for slot, part in a.parts.items())),
            escaped(a.source),
        )
        for a in r.arms
    ]
    return table(("Arm", "Taxonomy", "Starts from", "Training", "Recipe", "Source"), rows)


def _facts(title: str, facts: Mapping[str, Value]) -> str:
    rows = [
        (escaped(k.replace("_", " ")), escaped(f"{v:.6g}" if isinstance(v, float) else str(v)))
        for k, v in facts.items()
    ]
    return table((escaped(title), ""), rows) if rows else ""


def _spread(p: PointRecord) -> str:
    return f"{100 * p.mean:.2f}" + ("" if p.std is None else f" ± {100 * p.std:.2f}")


def index(named: Mapping[str, ContrastRecord]) -> str:
    """All contrasts by the survey's sections, with every verdict; links lead to the Markdown files beside it."""
    parts = ["# The survey's contrasts, run and judged\n"]
    words = counted([c.verdict.word for r in named.values() for c in r.claims])
    parts.append(
        f"{plural(len(named), 'contrast')}; {', '.join(f'{n} {word}' for word, n in words.items()) or 'no claims'}.\n"
    )
    for number, title, found in by_section(named):
        parts.append(f"## {f'{number} ' if number else ''}{escaped(title)}\n")
        for name, r in found:
            parts.append(
                f"[{escaped(r.title)}]({name}.md), tier {escaped(r.tier)}, {r.done:,} of {plural(r.planned, 'run')}\n"
            )
            rows = [
                (escaped(c.text), f"**{escaped(c.verdict.word)}**", escaped(c.verdict.told), escaped(c.survey))
                for c in r.claims
            ]
            parts.append(table(("Claim", "Verdict", "Difference", "The survey"), rows))
        if not found:
            parts.append("No contrast was run here.\n")
    if rows2 := [
        (shown.capitalize(), ", ".join(f"[{escaped(r.title)}]({name}.md)" for name, r in found))
        for shown, found in places(named)
    ]:
        parts += ["## The survey's tables and figures\n", table(("In the survey", "Here"), rows2)]
    return "\n".join(parts)
