"""prunus analyze layers: what networks keep of every layer."""

from __future__ import annotations

from prunus.cli.analyze import About, Work
from prunus.cli.output import Seed
from prunus.cli.subjects import NetsOrRuns
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

ABOUT = About(
    question="What does each network keep of every layer?",
    takes="one or more results, networks or runs",
    source="Layer-wise weight density: Cheng, Zhang & Shi 2024, TPAMI, arXiv:2308.06767, section 7.8.",
)


def analyze(nets: NetsOrRuns, seed: Seed = 0) -> Work:
    """Layer-wise density: the share of every weight tensor that is not zero, of what it was before anything was cut.

    Weights are parameters with two axes or more.
    """
    found = nets.opened(seed)

    def run() -> Analysis:
        layers = list(dict.fromkeys(n for s in found for n in s.weights))
        kept = [s.kept() for s in found]
        names = columns([s.name for s in found])
        shares = [{n: k[n] / s.weights[n] for n in s.weights} for s, k in zip(found, kept, strict=True)]
        rows = tuple(
            (n.removesuffix(".weight"), max(s.weights.get(n, 0) for s in found), *(by.get(n) for by in shares))
            for n in layers
        )
        totals = [sum(k.values()) / sum(s.weights.values()) for s, k in zip(found, kept, strict=True)]
        lines = tuple(
            Line(name, tuple((float(i), by[n]) for i, n in enumerate(layers) if n in by))
            for name, by in zip(names, shares, strict=True)
        )
        says = tuple(
            f"{name} keeps {total:.2%} of {sum(s.weights.values()):,} weights; least in "
            f"{min(by, key=by.__getitem__).removesuffix('.weight')}."
            for name, total, s, by in zip(names, totals, found, shares, strict=True)
        )
        return Analysis(
            name="layers",
            title="What is kept of every layer",
            source=ABOUT.source,
            says=says,
            tables=(Table("Share of the weights kept", ("layer", "weights", *names), rows, ".4f"),),
            plots=(
                Plot(
                    "Share kept by layer", "Layer, from the input", "Share of the weights kept", lines,
                    percent_y=True, names_x=tuple(n.removesuffix(".weight") for n in layers),
                ),
            ),
            data={
                "networks": [
                    {
                        "network": s.name,
                        "kept": t,
                        "layers": {n: {"weights": w, "kept": k[n]} for n, w in s.weights.items()},
                    }
                    for s, t, k in zip(found, totals, kept, strict=True)
                ]
            },
            facts={"seed": seed},
        )  # fmt: skip

    count = len(found)
    return Work(f"would count the weights kept of {count} network(s), layer by layer", {"networks": count}, run)
