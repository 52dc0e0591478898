"""What methods that prune while they train claim, tried on Fashion-MNIST: runs in a CSV, verdicts from it.

    python benchmarks/sparse_training.py                 prints the verdicts of the runs that there are, runs nothing
    python benchmarks/sparse_training.py --run           makes the runs that are missing, one after the other
                                         [--seeds 0 1 2] [--only rigl ...] [--rates 0.1 0.03] [--minutes 30]
    python benchmarks/sparse_training.py --markdown      writes docs/sparse-training.md

The first 20,000 training images; a ResNet-8 whose first convolution has stride 2 (75,002 parameters, batch
normalization); ten epochs of batches of 128, no augmentation, for every method and the dense network alike: SGD with
Nesterov momentum 0.9, weight decay 5e-4, a cosine from the learning rate to zero (rewound where the method rewinds it).
Runs of one seed begin with the same weights (column `initial`) and see the same batches in the same order. Several
learning rates, and settings where an arm has more than one, are tried with the first seed; the one that is best there
on 5,000 held-out training images is run with the others. Test images are looked at once, after the last step. What is
written in steps for long trainings is scaled to these 1,560 steps; `sparse_arms.arms` says how.

A row is a run; rows that are there are not run again, so an interrupted run goes on where it stopped. `seconds` is
processor time. One small problem proves nothing about large ones.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from sparse_arms import HIGH, arms
from torch import Tensor, nn

import prunus
from prunus import Budget, Task
from prunus.lab import claims, data, ledger, zoo
from prunus.lab.data import Dataset, Loader, Split

ROOT = Path(__file__).resolve().parents[1]
TABLE, PAGE = ROOT / "docs" / "sparse-training.csv", ROOT / "docs" / "sparse-training.md"


# What is run


@dataclass(frozen=True)
class Size:
    """How large the runs are."""

    images: int = 20_000
    epochs: int = 10
    batch: int = 128
    width: float = 1.0
    quick: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.epochs * (self.images // self.batch)


QUICK = Size(images=192, epochs=2, batch=16, width=0.25, quick=True)


@dataclass(frozen=True)
class Run:
    """A row of the table, once it is made."""

    method: str
    setting: str
    sparsity: float
    seed: int
    rate: float
    steps: int
    images: int
    valid: float = math.nan
    test: float = math.nan
    kept: float = math.nan
    natural: float | None = None
    collapsed: int = 0
    seconds: float = math.nan
    initial: str = ""
    torch: str = ""
    command: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same run."""
        return (self.method, self.setting, self.sparsity, self.seed, self.rate, self.steps, self.images)


@cache
def dataset(quick: bool) -> Dataset:
    """Fashion-MNIST where it lies; for a quick look, scikit-learn's digits."""
    return data.load("digits" if quick else "fashion-mnist")


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of the images that are classified right."""
    was = model.training
    model.eval()
    with torch.no_grad():
        batches = Loader(split, 500).batches(0)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    model.train(was)
    return right / len(split)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def cosine(progress: float) -> float:
    """The learning-rate factor."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def sgd(rate: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """What makes the optimizer of a run."""
    return lambda p: torch.optim.SGD(p, rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


def network(seed: int, width: float) -> nn.Module:
    """Initial weights."""
    torch.manual_seed(seed)
    return zoo.build("resnet8", in_channels=1, width=width, stem_stride=2)


def fingerprint(model: nn.Module) -> str:
    """The first digits of a digest of all weights."""
    sha = hashlib.sha256()
    for p in model.parameters():
        sha.update(p.detach().numpy().tobytes())
    return sha.hexdigest()[:8]


def made(run: Run, size: Size) -> Run:
    """The run, made."""
    found, recipe = dataset(size.quick), arms()[run.method].settings[run.setting]
    train, model = found.train.head(size.images), network(run.seed, size.width)
    loader = Loader(train, size.batch, seed=run.seed, shuffle=True, drop_last=True)
    calib = [b for b, _ in zip(Loader(train, size.batch, seed=run.seed + 1, shuffle=True), range(2), strict=False)]
    task = Task(loss=loss, train=loader, calib=calib, example=(calib[0][0][:2],))
    own = getattr(recipe.allocate, "density", None)
    budget = None if own is not None else Budget(density=1 - run.sparsity)
    initial, start = fingerprint(model), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prunus.prune(
            model, task, recipe, budget=budget, steps=size.steps, optimizer=sgd(run.rate), rate=cosine, seed=run.seed
        )
    return replace(
        run,
        seconds=round(time.process_time() - start, 1),
        valid=round(accuracy(result.model, found.valid), 5),
        test=round(accuracy(result.model, found.test), 5),
        kept=round(1 - result.sparsity, 5),
        natural=next((round(h["open"], 5) for h in reversed(result.history) if h.get("open") is not None), None),
        collapsed=len(result.collapsed),
        initial=initial,
        torch=torch.__version__,
        command=f"python benchmarks/sparse_training.py --run --only {run.method} --seeds {run.seed} --rates {run.rate}",
    )


def due(given: argparse.Namespace, size: Size, there: Sequence[Run]) -> list[Run]:
    """The runs that are asked for and missing: of the first seed all settings and rates, then, of the others, those
    that the first seed's validation chose.
    """
    done = {r.key for r in there}
    wanted = [(arms()[n], s) for n in (given.only or arms()) for s in arms()[n].sparsities]
    first, *others = given.seeds
    tried = [
        Run(one.name, setting, sparsity, first, rate, size.steps, size.images)
        for rate in given.rates
        for one, sparsity in wanted
        for setting in one.settings
    ]
    missing = [r for r in tried if r.key not in done]
    if missing:
        return missing
    keys = {r.key for r in tried}
    mine = [r for r in there if r.key in keys]
    best = [cell(mine, one.name, sparsity).runs[first] for one, sparsity in wanted]
    chosen = [Run(r.method, r.setting, r.sparsity, seed, r.rate, r.steps, r.images) for seed in others for r in best]
    return [r for r in chosen if r.key not in done]


# The verdicts


@dataclass(frozen=True)
class Cell:
    """What is known of a method at a sparsity: the setting and rate that validation chose, and its runs by seed."""

    method: str
    sparsity: float
    runs: Mapping[int, Run] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.method} at {100 * self.sparsity:g} %" if self.sparsity else self.method

    @property
    def test(self) -> dict[int, float]:
        """Test accuracy in percent, by seed."""
        return {seed: 100 * run.test for seed, run in self.runs.items()}

    @property
    def spread(self) -> float:
        return claims.spread(list(self.test.values()))


def cell(found: Iterable[Run], method: str, sparsity: float) -> Cell:
    """The runs of a method with the setting and rate of the best mean validation accuracy, among those of most
    seeds.
    """
    tried: dict[tuple[str, float], dict[int, Run]] = {}
    for run in found:
        if (run.method, run.sparsity) == (method, sparsity):
            tried.setdefault((run.setting, run.rate), {})[run.seed] = run
    if not tried:
        return Cell(method, sparsity)
    most = max(len(runs) for runs in tried.values())
    full = [runs for runs in tried.values() if len(runs) == most]
    best = max(full, key=lambda runs: mean(r.valid for r in runs.values()))
    return Cell(method, sparsity, dict(sorted(best.items())))


@dataclass(frozen=True)
class Claim:
    """`left` does better than `right` (in test accuracy) by more than `margin` points, or than minus the spreads of
    both; without a right side: its gates end within 1 % of their target.
    """

    text: str
    left: tuple[str, float]
    right: tuple[str, float] | None = None
    margin: float | None = 0.0

    def judged(self, found: Sequence[Run]) -> tuple[Cell, str, claims.Verdict]:
        """The left side, the name of the right side, and what the runs say."""
        left = cell(found, *self.left)
        if self.right is None:
            opened = {s: r.natural for s, r in left.runs.items() if r.natural is not None}
            return left, "its target", claims.on_target(opened, 1 - self.left[1], 0.01)
        right = cell(found, *self.right)
        margin = -(left.spread + right.spread) if self.margin is None else self.margin
        return left, right.name, claims.compared(left.test, right.test, margin)


CLAIMS = (
    *(
        Claim("masks that move beat random ones that stay", (name, sparsity), ("erk_random", sparsity))
        for name, sparsity in product(("rigl", "granet"), HIGH)
    ),
    *(
        Claim("within the spreads of iterative magnitude, or better", (name, sparsity), ("lth", sparsity), None)
        for name, sparsity in product(
            ("gradual_magnitude", "gradual_magnitude_global", "continuous_sparsification"), HIGH
        )
    ),
    Claim("2:4 from scratch is within 0.3 points of dense", ("sr_ste", 0.5), ("dense", 0.0), -0.3),
    *(
        Claim("slimming is better with its penalty", ("network_slimming", s), ("slimming_without", s))
        for s in (0.5, 0.7)
    ),
    Claim("gates under a Lagrangian end within 1 % of the target", ("lagrangian_l0", 0.5)),
    Claim("and so do gates with dual restarts", ("constrained_l0", 0.5)),
)


# The page


def line(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def claims_table(found: Sequence[Run]) -> list[str]:
    """A line per claim."""
    out = [line("claim", "method", "against", "seeds", "found, points", "verdict"), line(*["---"] * 6)]
    for claim in CLAIMS:
        left, right, said = claim.judged(found)
        out.append(line(claim.text, left.name, right, said.seeds, said.told, f"**{said.word}**"))
    return out


def runs_table(found: Sequence[Run]) -> list[str]:
    """A line per method and sparsity."""
    heads = ("method", "sparsity", "test accuracy, %", "seeds", "rate", "gates open", "seconds", "differs by")
    out = [line(*heads), line("---", "---:", "---:", "---:", "---:", "---:", "---:", "---")]
    cells = ((one, cell(found, one.name, sparsity)) for one in arms().values() for sparsity in one.sparsities)
    for one, c in ((one, c) for one, c in cells if c.runs):
        runs = list(c.runs.values())
        tested = f"{mean(c.test.values()):.2f}" + (f" ± {c.spread:.2f}" if len(runs) > 1 else "")
        opened = [r.natural for r in runs if r.natural is not None]
        numbers = (len(runs), f"{runs[0].rate:g}", f"{mean(opened):.3f}" if opened else "")
        edits = ", ".join(t for t in (one.edits, runs[0].setting) if t)
        seconds = f"{mean(r.seconds for r in runs):.0f}"
        out.append(line(f"`{one.name}`", f"{c.sparsity:g}", tested, *numbers, seconds, edits))
    return out


def page(found: Sequence[Run]) -> str:
    """docs/sparse-training.md."""
    about = str(__doc__).split("\n\n")
    tried = ", ".join(f"{r:g}" for r in sorted({r.rate for r in found}))
    text = [
        "# Pruning while training: what is claimed, and what a small problem says\n",
        "<!-- Written by benchmarks/sparse_training.py --markdown from docs/sparse-training.csv. -->\n",
        about[2] + "\n",
        about[3].strip() + "\n",
        f"{len(found)} runs; learning rates tried: {tried}. Every difference is taken between runs of one seed. A",
        "claim is supported where the whole 90 % interval (Student's, over seeds) of the mean difference lies on its",
        "side, refuted where it lies on the other, and inconclusive otherwise: with few seeds intervals are wide.\n",
        "## Claims\n",
        *claims_table(found),
        "\n## Runs\n",
        *runs_table(found),
        "",
    ]
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, if asked to; then say what the runs say."""
    parser = argparse.ArgumentParser(description="What methods that prune while they train claim, tried.")
    parser.add_argument("--run", action="store_true", help="make the runs that are missing")
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--quick", action="store_true", help="tiny runs on tiny images, to see that it works")
    parser.add_argument("--table", type=Path, default=TABLE, help="the CSV")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="*", default=[0.1, 0.03])
    parser.add_argument("--only", nargs="*", default=None, choices=list(arms()), help="these methods")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after these")
    given = parser.parse_args(arguments)
    size = QUICK if given.quick else Size()
    if given.quick and given.table == TABLE:
        parser.error("--quick needs a --table of its own")
    torch.set_num_threads(1)
    began = time.monotonic()
    while given.run and time.monotonic() - began < 60 * given.minutes:
        missing = due(given, size, ledger.rows(given.table, Run))
        if not missing:
            break
        run = missing[0]
        done = made(run, size)
        ledger.add(given.table, done)
        what = f"{run.method} {run.setting}".strip()
        print(f"{what}, {run.sparsity:g}, seed {run.seed}, rate {run.rate:g}: {done.test:.4f}", flush=True)
    found = [r for r in ledger.rows(given.table, Run) if (r.steps, r.images) == (size.steps, size.images)]
    print("\n".join(claims_table(found)))
    if given.markdown:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
