"""prunus analyze hessian: the curvature of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsOnData
from prunus.cli.output import Seed
from prunus.cli.showing import counting
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

if TYPE_CHECKING:
    from prunus.measure import Spectrum

ABOUT = About(
    question="How sharp is the loss where the network lies, and along how many directions?",
    takes="one or more networks, and data",
    source="Stochastic Lanczos quadrature of the Hessian: Ghorbani, Krishnan & Xiao 2019, ICML, arXiv:1901.10159.",
)
POINTS = 400


def analyze(
    nets: NetsOnData,
    top: Annotated[int, typer.Option("--top", min=1, help="Eigenvalues from each end.")] = 5,
    iterations: Annotated[int, typer.Option("--iterations", min=2, help="Hessian products per probe.")] = 40,
    probes: Annotated[int, typer.Option("--probes", min=1, help="Random starts; more make a smoother density.")] = 4,
    exact: Annotated[int, typer.Option("--exact", min=0, help="Up to so many weights, all eigenvalues.")] = 512,
    seed: Seed = 0,
) -> Work:
    """Eigenvalues of the loss's Hessian: the ends with bounds, the trace, and how the rest is spread.

    Over the weights that may move: zeros of weights are held at zero. A product is two backward passes per batch.
    """
    found = nets.looked_at(seed)

    def run() -> Analysis:
        from prunus.measure import hessian_spectrum

        spectra = []
        for s in found.subjects:
            with counting(f"Hessian of {s.name}") as told:
                spectra.append(
                    hessian_spectrum(
                        s.net, found.task, found.batches, kept=s.masks, top=top, iterations=iterations, probes=probes,
                        limit=exact, seed=seed, told=told,
                    )
                )  # fmt: skip
        names = columns([s.name for s in found.subjects])
        return _shown(names, spectra, found.facts)

    # One per weight where all eigenvalues are worked out, which is known once the weights are counted.
    count, most = len(found.subjects), max(probes * iterations, exact)
    return Work(f"would take up to {count * most} Hessian products", {**found.facts, "networks": count}, run)


def _shown(names: tuple[str, ...], spectra: list[Spectrum], facts: dict[str, str | int | float]) -> Analysis:
    rows = tuple(
        (n, s.size, s.largest[0], s.smallest[0], s.trace, s.trace_error, s.negative, "all" if s.exact else "Lanczos")
        for n, s in zip(names, spectra, strict=True)
    )
    ends = tuple(
        (n, i + 1, high, high_by, low, low_by)
        for n, s in zip(names, spectra, strict=True)
        for i, (high, high_by, low, low_by) in enumerate(
            zip(s.largest, s.largest_error, s.smallest, s.smallest_error, strict=True)
        )
    )
    return Analysis(
        name="hessian",
        title="Spectrum of the Hessian",
        source=ABOUT.source,
        says=tuple(
            f"{n}: largest eigenvalue {s.largest[0]:.4g}, smallest {s.smallest[0]:.4g}, trace {s.trace:.4g}; "
            f"{s.negative:.1%} are clearly below zero."
            for n, s in zip(names, spectra, strict=True)
        ),
        tables=(
            Table(
                "Hessian of the mean loss",
                ("network", "weights", "largest", "smallest", "trace", "its error", "clearly below 0", "worked out"),
                rows,
            ),
            Table("Ends of the spectrum", ("network", "rank", "largest", "within", "smallest", "within"), ends),
        ),
        plots=(_density(names, spectra),),
        data={
            "networks": [{"network": n, **vars(s), "negative": s.negative} for n, s in zip(names, spectra, strict=True)]
        },
        notes=(
            "Eigenvalues by Lanczos lie within the error stated of one of the Hessian's; equal ones are found once.",
        )
        if any(not s.exact for s in spectra)
        else (),
        facts=facts,
    )


def _density(names: tuple[str, ...], spectra: list[Spectrum]) -> Plot:
    low, high = min(s.smallest[0] for s in spectra), max(s.largest[0] for s in spectra)
    width = (high - low or 1.0) / 100
    grid = [low - 4 * width + (high - low + 8 * width) * i / (POINTS - 1) for i in range(POINTS)]
    lines = []
    for name, s in zip(names, spectra, strict=True):
        found = s.density(grid, width)
        floor = 1e-7 * max(found)
        lines.append(Line(name, tuple((x, max(y, floor)) for x, y in zip(grid, found, strict=True))))
    return Plot("Density of the eigenvalues", "Eigenvalue", "Density", tuple(lines), log_y=True)
