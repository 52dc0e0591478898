"""prunus analyze instability: what accuracy loses in the moment of pruning."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsJudged, Training, recipe_of
from prunus.cli.output import Seed, progress
from prunus.cli.setting import Steps
from prunus.cli.subjects import Problems
from prunus.core.errors import SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table

ABOUT = About(
    question="How much accuracy is lost in the moment of pruning, and where does training end?",
    takes="one network and data",
    source="Pruning instability: Bartoldson et al. 2020, NeurIPS, arXiv:1906.03728.",
)


def analyze(
    nets: NetsJudged,
    training: Training,
    method: Annotated[
        str, typer.Option("--method", "-m", help="A recipe that prunes while it trains.")
    ] = "gradual_magnitude",
    sparsity: Annotated[float, typer.Option("--sparsity", help="At the end, in (0, 1).")] = 0.9,
    steps: Steps = 500,
    seed: Seed = 0,
) -> Work:
    """Train a network under a recipe and measure accuracy right before and right after every pruning."""
    wrong = Problems()
    with wrong.noted():
        recipe: Any = recipe_of(method)
        if recipe.recover is not None or recipe.gate is not None:
            raise SpecError(f"--method {method} trains in its own way: take a schedule, such as gradual_magnitude")
    with wrong.noted():
        training.check()
    if not 0 < sparsity < 1:
        wrong.found.append(SpecError(f"--sparsity {sparsity}: it lies in (0, 1)"))
    if not steps:
        wrong.found.append(SpecError("--steps 0: instability is that of pruning a network in training"))
    found = nets.looked_at(seed, wrong, most=1)

    def run() -> Analysis:
        from prunus.core.budget import Budget
        from prunus.lab.analyses import stability
        from prunus.lab.experiment import one_cycle

        (one,) = found.subjects
        own = getattr(recipe.allocate, "density", None)
        budget = Budget(density=own) if own is not None else Budget.from_sparsity(sparsity)
        with progress(steps, method) as advance:
            ran = stability(
                one.net, found.task, recipe, budget, found.accuracy, steps=steps, optimizer=training.optimizer(),
                rate=one_cycle, seed=seed, on_step=lambda done, _of, loss: advance(done, loss),
            )  # fmt: skip
        rows = tuple((d.step, 1 - d.density, d.before, d.after, d.instability) for d in ran.drops)
        steps_of = [float(d.step) for d in ran.drops]
        lines = (
            Line("before", tuple(zip(steps_of, (d.before for d in ran.drops), strict=True))),
            Line("after", tuple(zip(steps_of, (d.after for d in ran.drops), strict=True))),
        )
        return Analysis(
            name="instability",
            title=f"Instability of {method} on {one.name}",
            source=ABOUT.source,
            says=(
                (
                    f"{len(ran.drops)} prunings cost {100 * ran.mean:.2f} points of accuracy each on average, at most "
                    f"{100 * max(d.instability for d in ran.drops):.2f}; after all {steps} steps it is {ran.final:.2%}."
                ),
            ),
            tables=(Table("Every pruning", ("step", "sparsity", "before", "after", "lost"), rows, ".4f"),),
            plots=(Plot("Accuracy around every pruning", "Step", "Accuracy", lines, percent_y=True),),
            data={
                "instability": ran.mean,
                "final": ran.final,
                "events": [{**vars(d), "instability": d.instability} for d in ran.drops],
            },
            facts={**found.facts, "method": method, "steps": steps, "sparsity": sparsity},
        )

    plan = {**found.facts, "method": method, "sparsity": sparsity, "steps": steps}
    return Work(f"would train {found.subjects[0].name} for {steps} steps and prune it by {method}", plan, run)
