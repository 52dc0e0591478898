"""prunus analyze ntk: the spectrum of the neural tangent kernel."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsOnData
from prunus.cli.output import Seed
from prunus.cli.showing import counting
from prunus.cli.subjects import Problems
from prunus.core.errors import SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

ABOUT = About(
    question="How evenly do gradients of different examples point, before and after pruning?",
    takes="one or more networks, and data",
    source="The empirical neural tangent kernel: Jacot, Gabriel & Hongler 2018, NeurIPS, arXiv:1806.07572.",
)


def analyze(
    nets: NetsOnData,
    rows: Annotated[int, typer.Option("--rows", min=2, help="Of the first batch, so many make the kernel.")] = 16,
    outputs: Annotated[str, typer.Option("--outputs", help="each: a row per output; sum: one per example.")] = "each",
    seed: Seed = 0,
) -> Work:
    """Eigenvalues of the tangent kernel of some examples: trace (what learning can move) and condition (how evenly).

    A backward pass per row, and rows times weights numbers in memory. Zeros of weights are held at zero.
    """
    wrong = Problems()
    if outputs not in ("each", "sum"):
        wrong.found.append(SpecError(f"--outputs {outputs}: each or sum"))
    found = nets.looked_at(seed, wrong)
    x, y = found.batches[0]
    batch = (x[:rows], y[:rows])

    def run() -> Analysis:
        from prunus.measure import tangent_kernel

        kernels = []
        for s in found.subjects:
            with counting(f"kernel of {s.name}") as told:
                kernels.append(
                    tangent_kernel(s.net, found.task, batch, kept=s.masks, outputs=outputs, told=told)  # type: ignore[arg-type]
                )
        names = columns([s.name for s in found.subjects])
        lines = tuple(
            Line(n, tuple((float(i + 1), v) for i, v in enumerate(k.eigenvalues)))
            for n, k in zip(names, kernels, strict=True)
        )
        cells = tuple(
            (n, k.parameters, len(k.eigenvalues), k.trace, k.eigenvalues[0], k.eigenvalues[-1], k.condition)
            for n, k in zip(names, kernels, strict=True)
        )
        return Analysis(
            name="ntk",
            title="Spectrum of the neural tangent kernel",
            source=ABOUT.source,
            says=tuple(
                f"{n}: trace {k.trace:.4g}, condition {k.condition:.4g} over {len(k.eigenvalues)} rows."
                for n, k in zip(names, kernels, strict=True)
            ),
            tables=(
                Table(
                    "Tangent kernel", ("network", "weights", "rows", "trace", "largest", "smallest", "condition"), cells
                ),
            ),
            plots=(Plot("Eigenvalues", "Rank", "Eigenvalue", lines, log_y=True),),
            data={
                "networks": [
                    {"network": n, "trace": k.trace, "condition": k.condition, "eigenvalues": list(k.eigenvalues)}
                    for n, k in zip(names, kernels, strict=True)
                ]
            },
            facts={**found.facts, "examples": len(batch[0]), "outputs": outputs},
        )

    return Work(f"would make the kernel of {len(batch[0])} examples", {**found.facts, "examples": len(batch[0])}, run)
