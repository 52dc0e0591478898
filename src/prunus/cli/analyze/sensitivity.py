"""prunus analyze sensitivity: what pruning one layer alone costs."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsJudged, fractions, recipe_of
from prunus.cli.output import Seed
from prunus.cli.showing import counting
from prunus.cli.subjects import Problems
from prunus.core.errors import SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table

ABOUT = About(
    question="Which layers can be pruned, and which break the network?",
    takes="one network and data",
    source="Sensitivity scan: Han et al. 2015, arXiv:1506.02626 (weights); Li et al. 2017, arXiv:1608.08710 (filters).",
)


def analyze(
    nets: NetsJudged,
    method: Annotated[
        str, typer.Option("--method", "-m", help="Whose units and scores: magnitude, l1_filter, snip, ...")
    ] = "magnitude",
    sparsities: Annotated[
        str, typer.Option("--sparsities", "-s", help="Of every layer alone, separated by commas.")
    ] = "0.1,0.3,0.5,0.7,0.9",
    seed: Seed = 0,
) -> Work:
    """Prune one layer (group of coupled units) at a time, the lowest scores first, and measure accuracy at once.

    Nothing is trained again, and what layers cost together is not the sum of these.
    """
    wrong = Problems()
    shares: tuple[float, ...] = ()
    with wrong.noted():
        shares = fractions(sparsities, "--sparsities")
    with wrong.noted():
        recipe = recipe_of(method)
        if recipe.prepare is not None or recipe.gate is not None:
            raise SpecError(
                f"--method {method} does not score the network as it is: take magnitude, snip, l1_filter, ..."
            )
    found = nets.looked_at(seed, wrong, most=1)

    def run() -> Analysis:
        from prunus.lab.analyses import sensitivity

        (one,) = found.subjects
        with counting("layers") as told:
            whole, scans = sensitivity(one.net, found.task, recipe, shares, found.accuracy, seed=seed, told=told)
        lines = tuple(Line(s.group, ((0.0, whole), *zip(shares, s.scores, strict=True))) for s in scans)
        least = min(scans, key=lambda s: s.scores[-1])
        most = max(scans, key=lambda s: s.scores[-1])
        return Analysis(
            name="sensitivity",
            title=f"Sensitivity of {one.name} to {method}",
            source=ABOUT.source,
            says=(
                (
                    f"Without pruning accuracy is {whole:.2%}. With {shares[-1]:.0%} of one layer gone it is between "
                    f"{least.scores[-1]:.2%} ({least.group}) and {most.scores[-1]:.2%} ({most.group})."
                ),
            ),
            tables=(
                Table(
                    "Accuracy with one layer pruned",
                    ("layer", "units", "of", *(f"{s:.0%} gone" for s in shares)),
                    tuple((s.group, s.units, f"{s.kind}s", *s.scores) for s in scans),
                    ".4f",
                ),
            ),
            plots=(
                Plot(
                    "Accuracy with one layer pruned", "Sparsity of the layer", "Accuracy", lines,
                    sparsity_x=True, percent_y=True,
                ),
            ),
            data={
                "dense": whole,
                "sparsities": list(shares),
                "layers": [
                    {"layer": s.group, "kind": s.kind, "units": s.units, "accuracy": list(s.scores)} for s in scans
                ],
            },
            notes=found.untrained(),
            facts={**found.facts, "method": method},
        )  # fmt: skip

    plan = {**found.facts, "method": method, "sparsities": list(shares)}
    return Work(f"would prune every layer of {found.subjects[0].name} alone at {len(shares)} sparsities", plan, run)
