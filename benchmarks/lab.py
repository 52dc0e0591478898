"""What the loops behind contrasts and networks cost over the shortest PyTorch loop that does the same.

    python benchmarks/lab.py [--json] [--markdown] [--rounds 9] [--steps 40] [--threads 1]

The shortest loop sets the learning rate, runs the network, takes cross-entropy, its gradients and an optimizer step.
Beside it: `prunus.prune` with a recipe that removes nothing and with SNIP at one eighth (what `prunus contrast` runs),
and `prunus.lab.trainer.train` (what the example networks are trained with). All train the same network from the same
weights on the same batches. Counted is the processor time between the first and the last step, which leaves out what is
done once; the ratio is the median over rounds of the ratio within a round, in which the loops take turns.

Below: what bfloat16 and channels-last memory change in the shortest loop, over float32 and contiguous memory, and
whether two trainings of one seed end with the same bits. --markdown writes docs/lab-cost.md.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from training import machine

import prunus
from prunus import Budget, methods
from prunus.lab.contrast.perform import dense_recipe, digest, task_of
from prunus.lab.contrast.problem import Problem
from prunus.lab.trainer import factor, train

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lab-cost.md"
MOST = 1.10
RATE = 0.02
NETWORKS = {"lenet300": "LeNet-300-100", "vgg_tiny": "VGG of three convolutions", "resnet20": "ResNet-20"}
Loop = Callable[[Problem, int], float]


@dataclass(frozen=True)
class Row:
    """A loop over another one, on a network."""

    network: str
    what: str
    ms: float
    ratio: float
    low: float
    high: float


def problem(network: str, steps: int, batch: int = 128, channels_last: bool = False) -> Problem:
    """As many Fashion-MNIST images as make these steps in one pass."""
    return Problem(
        name=network,
        network=network,
        data="fashion-mnist",
        images=steps * batch,
        epochs=1,
        tune=1,
        batch=batch,
        rates=(RATE,),
        channels_last=channels_last,
    )


class Clock:
    """Processor time from the first step that ends to the last."""

    def __init__(self) -> None:
        self.first, self.last, self.steps = 0.0, 0.0, 0

    def __call__(self, *_: Any) -> None:
        self.last = time.process_time()
        self.first = self.first or self.last
        self.steps += 1

    @property
    def seconds(self) -> float:
        """Per step."""
        return (self.last - self.first) / (self.steps - 1)


def shortest(one: Problem, steps: int, bf16: bool = False) -> float:
    """The loop that everything is measured against: seconds per step."""
    model, clock = one.initial(0).train(), Clock()
    optimizer = one.optimizer(list(model.parameters()), RATE)
    for i, (x, y) in enumerate(one.loader(0).batches(0)):
        for group in optimizer.param_groups:
            group["lr"] = RATE * factor(one.curve, i, steps)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            out = model(x)
        F.cross_entropy(out.float(), y).backward()
        optimizer.step()
        clock()
    return clock.seconds


def pruning(recipe: prunus.Recipe, density: float) -> Loop:
    """What contrasts run."""

    def loop(one: Problem, steps: int) -> float:
        clock = Clock()
        prunus.prune(
            one.initial(0),
            task_of(one, 0),
            recipe,
            budget=Budget(density=density),
            steps=steps,
            optimizer=lambda parameters: one.optimizer(parameters, RATE),
            rate=lambda progress: factor(one.curve, round(progress * 10_000), 10_000),
            on_step=clock,
        )
        return clock.seconds

    return loop


def trained(one: Problem, _: int) -> float:
    """What example networks are trained with."""
    model, clock = one.initial(0), Clock()
    train(model, one.loader(0), epochs=1, optimizer=one.optimizer(list(model.parameters()), RATE), on_step=clock)
    return clock.seconds


def repeated(one: Problem, steps: int) -> bool:
    """Whether two trainings of one seed end with the same bits."""
    ends = []
    for _ in range(2):
        result = prunus.prune(
            one.initial(0),
            task_of(one, 0),
            methods.get("snip"),
            budget=Budget(density=0.125),
            steps=steps,
            optimizer=lambda parameters: one.optimizer(parameters, RATE),
        )
        ends.append(digest(result.model.state_dict()))
    return ends[0] == ends[1]


def compared(name: str, loops: dict[str, Callable[[], float]], rounds: int) -> list[Row]:
    """The loops after the first over the first, taking turns."""
    base, *others = loops
    found: dict[str, list[float]] = {n: [] for n in loops}
    for i in range(rounds + 1):
        order = list(loops) if i % 2 else list(reversed(loops))
        for n in order:
            seconds = loops[n]()
            if i:  # the first round warms up
                found[n].append(seconds)
    rows = []
    for n in others:
        ratios = [a / b for a, b in zip(found[n], found[base], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        rows.append(Row(name, n, 1e3 * median(found[n]), median(ratios), low, high))
    return [Row(name, base, 1e3 * median(found[base]), 1.0, 1.0, 1.0), *rows]


def measured(rounds: int, steps: int) -> tuple[list[Row], list[Row], dict[str, bool]]:
    """Loops, memory and numbers, repeatability."""
    loops: list[Row] = []
    formats: list[Row] = []
    same = {}
    for network, title in NETWORKS.items():
        one, last = problem(network, steps), problem(network, steps, channels_last=True)
        loops += compared(
            title,
            {
                "shortest loop": lambda one=one: shortest(one, steps),
                "prune, nothing removed": lambda one=one: pruning(dense_recipe(), 1.0)(one, steps),
                "prune, SNIP at 1/8": lambda one=one: pruning(methods.get("snip"), 0.125)(one, steps),
                "lab trainer": lambda one=one: trained(one, steps),
            },
            rounds,
        )
        if any(isinstance(m, nn.Conv2d) for m in one.initial(0).modules()):
            formats += compared(
                title,
                {
                    "float32": lambda one=one: shortest(one, steps),
                    "float32, channels last": lambda last=last: shortest(last, steps),
                    "bfloat16": lambda one=one: shortest(one, steps, bf16=True),
                    "bfloat16, channels last": lambda last=last: shortest(last, steps, bf16=True),
                },
                rounds,
            )
        same[title] = repeated(one, steps)
    return loops, formats, same


def table(rows: list[Row], most: float | None) -> list[str]:
    """The rows as Markdown."""
    out = ["| network | loop | ms a step | over the first | quartiles |", "|---|---|---:|---:|---|"]
    for r in rows:
        said = "" if most is None or r.ratio <= most else f" (more than {most:g})"
        out.append(f"| {r.network} | {r.what} | {r.ms:.1f} | {r.ratio:.3f}{said} | {r.low:.3f} to {r.high:.3f} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help=f"write docs/{PAGE.name}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    loops, formats, same = measured(given.rounds, given.steps)
    if given.json:
        print(json.dumps({"loops": [vars(r) for r in loops], "formats": [vars(r) for r in formats], "same": same}))
        return
    text = [
        "# What the loops of the laboratory cost\n",
        "<!-- Written by benchmarks/lab.py --markdown. -->\n",
        str(__doc__).split("\n\n")[2] + "\n",
        (
            f"{machine(given.threads)}; batches of 128 images of Fashion-MNIST, {given.steps} steps, {given.rounds} "
            "rounds."
        ),
        f"Meant to be at most {MOST:g}.\n",
        *table(loops, MOST),
        "\n## bfloat16, and channels last\n",
        "The shortest loop, over the same in float32 with contiguous memory. Contrasts train in float32 unless a tier",
        "says otherwise; `vgg_tiny` is trained with channels last.\n",
        *table(formats, None),
        "\n## The same bits\n",
        *(f"- {n}: two trainings of one seed {'agree to the bit' if s else 'DIFFER'}." for n, s in same.items()),
        "",
    ]
    if given.markdown:
        PAGE.write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
