"""prunus analyze essential: up to where one-shot pruning costs nothing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsJudged, Training, fractions, recipe_of
from prunus.cli.output import Seed
from prunus.cli.setting import Steps
from prunus.cli.showing import counting
from prunus.cli.subjects import Problems
from prunus.core.errors import SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table

ABOUT = About(
    question="Up to which sparsity does pruning at once cost nothing, and where does it start to hurt?",
    takes="one trained network and data",
    source="Essential sparsity: Jaiswal et al. 2023, NeurIPS, arXiv:2306.03805.",
)


def analyze(
    nets: NetsJudged,
    training: Training,
    method: Annotated[str, typer.Option("--method", "-m", help="A recipe; the paper's is magnitude.")] = "magnitude",
    sparsities: Annotated[
        str, typer.Option("--sparsities", "-s", help="A grid, separated by commas; 0 is added.")
    ] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95",
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.0, help="Accuracy lost that counts as none.")] = 0.01,
    steps: Steps = 0,
    seed: Seed = 0,
) -> Work:
    """Prune at once to a grid of sparsities and find where accuracy drops: the turn, and how far within --tolerance.

    With --steps each is trained so long afterwards, the dense network too.
    """
    wrong = Problems()
    shares: tuple[float, ...] = ()
    with wrong.noted():
        shares = fractions(sparsities, "--sparsities", zero=True)
        if len(shares) < 4:
            raise SpecError(f"--sparsities {sparsities}: a turn is seen among three sparsities or more")
    with wrong.noted():
        recipe: Any = recipe_of(method)
    with wrong.noted():
        training.check()
    found = nets.looked_at(seed, wrong, most=1)

    def run() -> Analysis:
        from prunus.lab.analyses import pruned_curve
        from prunus.lab.experiment import one_cycle
        from prunus.measure import essential_sparsity

        (one,) = found.subjects
        with counting("sparsities") as told:
            runs = pruned_curve(
                one.net, found.task, recipe, shares, [found.accuracy], steps=steps, optimizer=training.optimizer(),
                rate=one_cycle, seed=seed, on_step=told,
            )  # fmt: skip
        scores = [r.scores[0] for r in runs]
        turn = essential_sparsity(shares, scores, tolerance=tolerance)
        sharp = "It does not turn on this grid."
        if turn.turn is not None:
            sharp = f"It turns at {turn.turn:.0%}: a point of sparsity costs {turn.before:.2g}, then {turn.after:.2g}."
        near = f"{100 * tolerance:g} point{'' if tolerance == 0.01 else 's'}"
        marks: tuple[tuple[float, str], ...] = ((turn.within, f"within {near}"),)
        marks += ((turn.turn, "turn"),) if turn.turn is not None else ()
        after = f" and {steps} steps of training" if steps else ""
        return Analysis(
            name="essential",
            title=f"Essential sparsity of {one.name}",
            source=ABOUT.source,
            says=(
                f"Accuracy is within {near} of {turn.dense:.2%} up to {turn.within:.0%} sparsity.",
                sharp,
            ),
            tables=(
                Table(
                    f"Accuracy after {method}{after}", ("sparsity", "accuracy", "lost"),
                    tuple((s, v, turn.dense - v) for s, v in zip(shares, scores, strict=True)), ".4f",
                ),
            ),
            plots=(
                Plot(
                    f"Accuracy after {method}{after}", "Sparsity", "Accuracy",
                    (Line(method, tuple(zip(shares, scores, strict=True))),), sparsity_x=True, percent_y=True,
                    marks=marks,
                ),
            ),
            data={"sparsities": list(shares), "accuracy": scores, "essential": vars(turn)},
            notes=("Both answers are points of the grid: a finer grid tells them finer.", *found.untrained()),
            facts={**found.facts, "method": method, "steps": steps},
        )  # fmt: skip

    plan = {**found.facts, "method": method, "sparsities": list(shares), "steps": steps}
    return Work(f"would prune {found.subjects[0].name} by {method} to {len(shares) - 1} sparsities", plan, run)
