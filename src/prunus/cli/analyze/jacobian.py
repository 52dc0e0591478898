"""prunus analyze jacobian: how a network stretches small changes of its input."""

from __future__ import annotations

from typing import Annotated

import typer

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsOnData
from prunus.cli.output import Seed
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

ABOUT = About(
    question="Do signals still pass, neither dying nor exploding?",
    takes="one or more networks, and data",
    source="Singular values of the input-output Jacobian: Lee et al. 2020, ICLR, arXiv:1906.06307.",
)


def analyze(
    nets: NetsOnData,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Of the first batch, so many are looked at.")] = 32,
    seed: Seed = 0,
) -> Work:
    """Singular values of the outputs' Jacobian by the input: near 1 signals pass unchanged, near 0 they are lost.

    A backward pass per output. Only for inputs that are numbers: token ids have no derivative.
    """
    found = nets.looked_at(seed)
    batch = (found.batches[0][0][:rows], found.batches[0][1][:rows])

    def run() -> Analysis:
        from prunus.measure import jacobian_values

        values = [jacobian_values(s.net, found.task, batch) for s in found.subjects]
        names = columns([s.name for s in found.subjects])
        cells = tuple(
            (n, v.mean, v.largest, v.smallest, v.largest / v.smallest if v.smallest > 0 else None)
            for n, v in zip(names, values, strict=True)
        )
        lines = tuple(
            Line(
                n,
                tuple((float(i + 1), float(m)) for i, m in enumerate(v.values.mean(0))),
                apart=tuple(v.values.std(0, correction=0).tolist()),
            )
            for n, v in zip(names, values, strict=True)
        )
        return Analysis(
            name="jacobian",
            title="Singular values of the Jacobian",
            source=ABOUT.source,
            says=tuple(
                f"{n}: singular values of {v.mean:.4g} in the mean, {v.smallest:.4g} to {v.largest:.4g}."
                for n, v in zip(names, values, strict=True)
            ),
            tables=(Table("Outputs by inputs", ("network", "mean", "largest", "smallest", "condition"), cells),),
            plots=(Plot("Mean and spread over examples", "Rank", "Singular value", lines),),
            data={
                "networks": [
                    {
                        "network": n,
                        "mean": v.mean,
                        "largest": v.largest,
                        "smallest": v.smallest,
                        "values": v.values.tolist(),
                    }
                    for n, v in zip(names, values, strict=True)
                ]
            },
            facts={**found.facts, "examples": len(batch[0])},
        )

    return Work(f"would take the Jacobian at {len(batch[0])} examples", {**found.facts, "examples": len(batch[0])}, run)
