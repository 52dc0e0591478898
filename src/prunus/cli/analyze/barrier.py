"""prunus analyze barrier: the loss on the straight line between two networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsJudged, Opened, Training
from prunus.cli.output import Seed
from prunus.cli.setting import Steps
from prunus.cli.showing import counting
from prunus.cli.subjects import Problems
from prunus.core.errors import SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

if TYPE_CHECKING:
    from torch import nn

ABOUT = About(
    question="Do two networks lie in one basin of the loss?",
    takes="two networks and data; or one, trained twice with the data in another order (--steps)",
    source="Linear mode connectivity and instability: Frankle et al. 2020, ICML, arXiv:1912.05671.",
)


def analyze(
    nets: NetsJudged,
    training: Training,
    points: Annotated[int, typer.Option("--points", min=3, help="Networks on the line, its ends included.")] = 11,
    steps: Steps = 0,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Compute the statistics of normalizations anew at every point.")
    ] = False,
    seed: Seed = 0,
) -> Work:
    """Error and loss along the straight line between two networks' weights, and the barrier between them.

    Of one network, two copies are trained for --steps from where it is, with different orders of the data: it is
    stable where the barrier is about zero. Zeros of weights stay zero.
    """
    wrong, count = Problems(), len(nets.networks)
    with wrong.noted():
        training.check()
    if count == 1 and not steps:
        wrong.found.append(
            SpecError("one network is compared with itself: give --steps to train two copies, or another")
        )
    if count == 2 and steps:
        wrong.found.append(SpecError("two networks are compared as they are: leave --steps out"))
    found = nets.looked_at(seed, wrong, least=1, most=2)

    def run() -> Analysis:
        one, other = _ends(found, steps, training, seed)
        return _shown(found, one, other, points, recalibrate, steps)

    told = "two copies, trained apart" if count == 1 else " and ".join(nets.networks)
    return Work(f"would walk from one network to the other in {points} points: {told}", found.facts, run)


def _ends(found: Opened, steps: int, training: Training, seed: int) -> tuple[nn.Module, nn.Module]:
    from prunus.measure import twins

    if not steps:
        return found.subjects[0].net, found.subjects[1].net
    return twins(found.subjects[0].net, found.task, steps, training.optimizer(), seeds=(2 * seed, 2 * seed + 1))


def _shown(found: Opened, one: nn.Module, other: nn.Module, points: int, recalibrate: bool, steps: int) -> Analysis:
    from prunus.measure import line_errors
    from prunus.measure.connectivity import barrier

    losses: list[float] = []
    with counting("points of the line") as told:

        def error(model: nn.Module) -> float:
            losses.append(found.loss(model))
            told(len(losses), points)
            return 1.0 - found.accuracy(model)

        errors = line_errors(one, other, error, points=points, recalibrate=found.task if recalibrate else None)
    alphas = [a for a, _ in errors]
    by_loss = list(zip(alphas, losses, strict=True))
    high, high_loss = barrier(errors), barrier(by_loss)
    names = columns([s.name for s in found.subjects])
    title = f"The line between {' and '.join(names)}" if not steps else f"Two trainings of {names[0]}"
    says = f"The barrier is {100 * high:.2f} points of error and {high_loss:.4f} of loss above the mean of the ends."
    notes = (
        () if recalibrate else ("Statistics of normalizations are those on the line; --recalibrate takes them anew.",)
    )
    return Analysis(
        name="barrier",
        title=title,
        source=ABOUT.source,
        says=(says,),
        tables=(
            Table(
                "Along the line (1: the first network, 0: the second)",
                ("share of the first", "error", "loss"),
                tuple((a, e, v) for (a, e), v in zip(errors, losses, strict=True)),
            ),
        ),
        plots=(
            Plot("Loss along the line", "Share of the first network", "Loss", (Line("loss", tuple(by_loss)),)),
            Plot(
                "Error along the line", "Share of the first network", "Error", (Line("error", tuple(errors)),),
                percent_y=True,
            ),
        ),
        data={
            "error_barrier": high,
            "loss_barrier": high_loss,
            "points": [{"alpha": a, "error": e, "loss": v} for (a, e), v in zip(errors, losses, strict=True)],
        },
        notes=notes,
        facts={**found.facts, "steps": steps, "points": points},
    )  # fmt: skip
