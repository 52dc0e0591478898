"""prunus analyze correlation: how much of one network's large weights is in another's."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.output import Seed
from prunus.cli.subjects import Nets, Problems
from prunus.core.errors import SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

ABOUT = About(
    question="Are the large weights of two states of a network in the same places?",
    takes="two networks of one shape (initial and trained, dense and pruned)",
    source="Weight correlation: Liu et al. 2021, ICML, arXiv:2102.11068.",
)


def analyze(
    nets: Nets,
    share: Annotated[float, typer.Option("--share", help="Part of the weights that counts as large.")] = 0.2,
    seed: Seed = 0,
) -> Work:
    """Of the largest magnitudes of two networks, the part at the same positions; and the correlation of all.

    Unrelated networks share --share of them. A name of the zoo is a network with the initial weights of --seed.
    """
    wrong = Problems()
    if not 0 < share <= 1:
        wrong.found.append(SpecError(f"--share {share}: it lies in (0, 1]"))
    one, other = nets.opened(seed, wrong, least=2, most=2)

    def run() -> Analysis:
        from prunus.measure import weight_correlation

        found = weight_correlation(one.net, other.net, share=share)
        names = columns([one.name, other.name])
        layers = tuple(found.layers.items())
        says = (
            f"{found.overlap:.2%} of the {share:.0%} largest weights of {names[0]} are among those of {names[1]}.",
            f"By chance it would be {share:.0%}.",
            f"The magnitudes correlate by {found.pearson:.4f}.",
        )
        line = Line("in common", tuple((float(i), v) for i, (_, v) in enumerate(layers)))
        by_chance = Line("by chance", tuple((float(i), share) for i in range(len(layers))))
        return Analysis(
            name="correlation",
            title=f"Large weights of {names[0]} and {names[1]}",
            source=ABOUT.source,
            says=says,
            tables=(
                Table("By layer", ("layer", "large weights in common"), tuple((n, v) for n, v in layers), ".4f"),
            ),
            plots=(
                Plot(
                    "Large weights in common by layer", "Layer, from the input", "Share of the large weights in common",
                    (line, by_chance), percent_y=True, names_x=tuple(n for n, _ in layers),
                ),
            ),
            data={"share": share, "overlap": found.overlap, "pearson": found.pearson, "layers": dict(found.layers)},
            facts={"seed": seed, "share": share},
        )  # fmt: skip

    return Work(f"would compare the weights of {one.name} and {other.name}", {"networks": [one.name, other.name]}, run)
