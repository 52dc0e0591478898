"""What a training step under a session costs over a dense one, method by method.

    python benchmarks/training.py [--json] [--markdown] [--rounds 25] [--batch 128] [--only rigl ...] [--compile]

Two copies of a network are trained side by side on the same batch, one with a session attached to its optimizer; their
steps take turns in one process, the order changing every round. A step is zero_grad, forward, loss, backward and
optimizer step (SGD with momentum and weight decay). The ratio is the median over rounds of the ratio within a round, of
processor time, which a busy machine disturbs less than the time on the wall; quartiles show what is left of it.

What happens only every so many steps (an event, a new selection) is timed in a run in which it happens every fourth
step, and counted as often as it happens in the recipe: the ratio is (period - 1) ordinary steps and one of those, over
`period` dense ones. --compile runs both copies through torch.compile, where a C++ compiler is there.
--markdown writes docs/training-cost.md with both.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Budget, Recipe, Task, methods
from prunus.lab import zoo
from prunus.parts.allocation import NofM
from prunus.parts.gate import Reselected, Straight
from prunus.parts.penalty import Anchored
from prunus.parts.prox import SoftThreshold
from prunus.parts.schedule import Gradual, Marked, OneShot, PruneAndGrow

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training-cost.md"
NETWORKS = {"resnet20": "ResNet-20", "vit_tiny_cifar": "ViT (6 blocks of 128)"}
EVERY = 4  # steps from one update to the next while timing
LONG = 10**6  # steps of a run of which only the first are made


@dataclass(frozen=True)
class Case:
    """A recipe to time.

    Attributes:
        name: what the table calls it.
        recipe: as it is timed; what is done now and then is done every `EVERY` steps.
        period: the steps from one update to the next in the recipe itself; 1 where all steps are alike.
        steps: of the run, over which the schedule is laid.
        most: what the ratio is meant to be at most; None where nothing is claimed.
        needs: modules without which the recipe says nothing, so that the network is left out.
    """

    name: str
    recipe: Recipe
    period: int = 1
    steps: int = LONG
    most: float | None = None
    needs: type[nn.Module] = nn.Module


def cases() -> tuple[Case, ...]:
    """What is timed."""
    held = methods.get("magnitude")
    late = replace(held, schedule=OneShot(at=1.0))
    grown = replace(methods.get("rigl"), schedule=PruneAndGrow(every=EVERY, until=1.0, drop=0.3, skip_step=True))
    rising = replace(methods.get("gradual_magnitude"), schedule=Gradual(begin=0.0, end=1.0, every=EVERY))
    marked = Marked(of=Gradual(begin=0.0, end=1.0, every=EVERY))
    nm = replace(late, allocate=NofM(2, 4))
    return (
        Case("magnitude, masks held", held, most=1.05),
        Case("gradual_magnitude, an event every 100 steps", rising, period=100, steps=400, most=1.10),
        Case("rigl, an update every 100 steps", grown, period=100, steps=400, most=1.10),
        Case("network_slimming, its penalty on", methods.get("network_slimming"), most=1.15, needs=nn.BatchNorm2d),
        Case("soft threshold after every step", replace(late, prox=SoftThreshold()), most=1.15),
        Case(
            "ADMM, a new anchor every 100 steps",
            replace(late, penalty=Anchored(every=EVERY)),
            period=100,
            most=1.15,
        ),
        Case("straight gate, masks chosen every 100 steps", replace(late, schedule=marked, gate=Straight()), 100, 400),
        Case("straight gate, chosen every 16 steps (DPF)", replace(late, gate=Reselected(every=EVERY)), period=16),
        Case("straight gate, 2:4 chosen at every step (SR-STE)", replace(nm, gate=Reselected(decay=2e-4))),
        Case("annealed gate (continuous_sparsification)", methods.get("continuous_sparsification")),
    )


@dataclass(frozen=True)
class Row:
    """What was measured of one recipe on one network."""

    network: str
    case: str
    compiled: bool
    pairs: int
    dense_ms: float
    ratio: float
    low: float
    high: float
    ordinary: float
    update: float | None
    period: int
    most: float | None

    @property
    def verdict(self) -> str:
        """Whether the ratio is within what it is meant to be."""
        return "" if self.most is None else "yes" if self.ratio <= self.most else "no"


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """One training step, and the processor time that it took."""
    start = time.process_time()
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    return time.process_time() - start


def timed(case: Case, network: str, rounds: int, batch: int, compiled: bool) -> Row:
    """One recipe on one network."""
    torch.manual_seed(0)
    dense = zoo.build(network, num_classes=10).train()
    pruned = copy.deepcopy(dense)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4) for m in (dense, pruned)]
    task = Task(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), calib=[(images, labels)], example=(images[:2],))
    own = getattr(case.recipe.allocate, "density", None)
    session = prunus.Session(pruned, case.recipe, task, Budget(density=0.1) if own is None else None, steps=case.steps)
    session.attach(optimizers[1])
    both = [torch.compile(m) if compiled else m for m in (dense, pruned)]
    pairs: list[tuple[float, float]] = []
    updates: list[tuple[float, float]] = []
    warm = 2 * EVERY if compiled or case.period > 1 else 2
    for i in range(warm + (rounds if case.period == 1 else rounds * EVERY // (EVERY - 1))):
        pair = [0.0, 0.0]
        for j in (0, 1) if i % 2 else (1, 0):
            pair[j] = step(both[j], optimizers[j], images, labels)
        if i >= warm:
            # An event comes after the step that makes the count a multiple; a new anchor or choice is due with it or
            # before the next step. So whichever of the steps takes longest is the one.
            (updates if case.period > 1 and i % EVERY == phase(case) else pairs).append((pair[0], pair[1]))
    session.detach()
    plain = [p / d for d, p in pairs]
    low, _, high = quantiles(plain, n=4)
    ordinary = median(plain)
    extra = median(p / d for d, p in updates) if updates else None
    ratio = ordinary if extra is None else ((case.period - 1) * ordinary + extra) / case.period
    return Row(
        network=network,
        case=case.name,
        compiled=compiled,
        pairs=len(pairs) + len(updates),
        dense_ms=1e3 * median(d for d, _ in pairs + updates),
        ratio=ratio,
        low=low + ratio - ordinary,
        high=high + ratio - ordinary,
        ordinary=ordinary,
        update=extra,
        period=case.period,
        most=case.most,
    )


def phase(case: Case) -> int:
    """Which of every `EVERY` steps, counted from 0, makes an update: anchors are renewed before the step at which the
    count is a multiple, everything else after the step that makes it one.
    """
    return 0 if case.recipe.penalty is not None else EVERY - 1


def machine(threads: int) -> str:
    """What it was measured on."""
    named = (s.split(":")[1].strip() for s in lines("/proc/cpuinfo") if s.startswith("model name"))
    cpu = next(named, platform.machine())
    return f"torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''} of {cpu}"


def lines(path: str) -> list[str]:
    """The lines of a file that may not be there."""
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as Markdown."""
    out = ["| network | method | over dense | quartiles | an update | meant to be at most | met |"]
    out.append("|---|---|---:|---|---:|---:|---|")
    for r in rows:
        more = "" if r.update is None else f"{r.update:.2f}"
        most = "" if r.most is None else f"{r.most:.2f}"
        name = NETWORKS.get(r.network, r.network)
        cells = (name, r.case, f"{r.ratio:.3f}", f"{r.low:.3f} to {r.high:.3f}", more, most, r.verdict)
        out.append("| " + " | ".join(cells) + " |")
    return out


def page(rows: Sequence[Row], told: str, batch: int) -> str:
    """docs/training-cost.md."""
    text = [
        "# What training under a session costs\n",
        "<!-- Written by benchmarks/training.py --markdown; run it again instead of editing. -->\n",
        "The time of a training step under a session over that of a dense step of the same network, in the same",
        f"process, in turns: batch {batch}, SGD with momentum and weight decay, 32x32 images, {told}. Nine tenths of",
        "the weights are pruned (2:4 patterns: half). No step becomes cheaper than a dense one: masked weights are",
        "multiplied like others. `an update` is a step at which masks are chosen; it is counted as often as it comes",
        "in the recipe. Processor time is counted, and quartiles are those of the pairs of steps.\n",
    ]
    for compiled in (False, True):
        found = [r for r in rows if r.compiled == compiled]
        if found:
            text += ["## With torch.compile\n" if compiled else "## Eager\n", *table(found), ""]
    return "\n".join(text)


def measured(given: argparse.Namespace) -> Iterator[Row]:
    """Row by row."""
    kinds = [given.compile] if not given.markdown else [False, True]
    for compiled in kinds:
        if compiled and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            warnings.warn("torch.compile needs a C++ compiler, and there is none here: left out", stacklevel=1)
            continue
        for network in given.networks:
            kinds_there = {type(m) for m in zoo.build(network, num_classes=10).modules()}
            for case in cases():
                if given.only and not any(word in case.name for word in given.only):
                    continue
                if any(issubclass(k, case.needs) for k in kinds_there):
                    torch.compiler.reset()
                    yield timed(case, network, given.rounds, given.batch, compiled)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", action="store_true", help=f"write {PAGE.name}, eager and compiled")
    parser.add_argument("--compile", action="store_true", help="run both copies through torch.compile")
    parser.add_argument("--rounds", type=int, default=25, help="timed pairs of steps (at least 9)")
    parser.add_argument("--batch", type=int, default=128, help="images in a batch")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--only", nargs="*", default=None, help="words that a method's name must contain one of")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), help="of the zoo")
    given = parser.parse_args(arguments)
    given.rounds = max(9, given.rounds)
    torch.set_num_threads(given.threads)
    rows: list[Row] = []
    for row in measured(given):
        rows.append(row)
        if not given.json:
            said = f" (at most {row.most:.2f}: {row.verdict})" if row.most is not None else ""
            print(
                f"{row.network:15} {'compiled' if row.compiled else 'eager':8} {row.case:48} {row.ratio:6.3f} "
                f"[{row.low:.3f}, {row.high:.3f}] dense {row.dense_ms:.0f} ms{said}",
                flush=True,
            )
    told: dict[str, Any] = {"machine": machine(given.threads), "batch": given.batch, "rows": [asdict(r) for r in rows]}
    if given.json:
        print(json.dumps(told))
    if given.markdown:
        PAGE.write_text(page(rows, told["machine"], given.batch), encoding="utf-8")


if __name__ == "__main__":
    main()
