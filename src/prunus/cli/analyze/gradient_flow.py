"""prunus analyze gradient-flow: how fast the loss falls, and by which layers."""

from __future__ import annotations

from prunus.cli.analyze import About, Work
from prunus.cli.examples import NetsOnData
from prunus.cli.output import Seed
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

ABOUT = About(
    question="How much gradient reaches the weights that are left?",
    takes="one or more networks, and data",
    source="Gradient flow, the squared norm of the gradient: Evci et al. 2022, AAAI, arXiv:2010.03533.",
)


def analyze(nets: NetsOnData, seed: Seed = 0) -> Work:
    """The squared norm of the loss's gradient over weights that may move, and over all of them.

    Zeros of weights are held at zero. Networks are in evaluation mode.
    """
    found = nets.looked_at(seed)

    def run() -> Analysis:
        from prunus.measure import gradient_flow

        flows = [gradient_flow(s.net, found.task, found.batches, kept=s.masks) for s in found.subjects]
        names = columns([s.name for s in found.subjects])
        rows = tuple((n, f.flow, f.whole, f.loss, f.parameters) for n, f in zip(names, flows, strict=True))
        layers = list(dict.fromkeys(n for f in flows for n in f.layers))
        by_layer = tuple((n, *(f.layers.get(n) for f in flows)) for n in layers)
        lines = tuple(
            Line(name, tuple((float(i), f.layers[n]) for i, n in enumerate(layers) if n in f.layers))
            for name, f in zip(names, flows, strict=True)
        )
        plot = Plot(
            "Gradient flow by parameter", "Parameter, from the input", "Squared norm of the gradient", lines,
            log_y=True, names_x=tuple(layers),
        )  # fmt: skip
        return Analysis(
            name="gradient-flow",
            title="Gradient flow",
            source=ABOUT.source,
            says=tuple(
                f"{n}: to first order the loss ({f.loss:.4f}) falls by {f.flow:.4g} per unit of step size."
                for n, f in zip(names, flows, strict=True)
            ),
            tables=(
                Table("Squared norm of the gradient", ("network", "may move", "all", "loss", "parameters"), rows),
                Table("By parameter", ("parameter", *names), by_layer),
            ),
            plots=(plot,),
            data={
                "networks": [
                    {"network": n, **vars(f), "layers": dict(f.layers)} for n, f in zip(names, flows, strict=True)
                ]
            },
            facts=found.facts,
        )

    return Work(
        f"would take the gradient of {len(found.subjects)} network(s) on {found.facts['examples']} examples",
        found.facts,
        run,
    )
