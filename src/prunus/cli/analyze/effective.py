"""prunus analyze effective: weights that are left and lead nowhere."""

from __future__ import annotations

from prunus.cli.analyze import About, Work
from prunus.cli.networks import Input, example_for, tried
from prunus.cli.output import Seed
from prunus.cli.subjects import Nets, Problems
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

ABOUT = About(
    question="How much of what is left lies on a path from input to output?",
    takes="one or more results or networks",
    source="Effective sparsity: Vysogorets & Kempe 2023, JMLR, arXiv:2107.02306; by synaptic flow in float64.",
)


def analyze(nets: Nets, shape: Input = None, seed: Seed = 0) -> Work:
    """Sparsity counted directly (zeros), and effectively (zeros, and weights on no path from input to output)."""
    wrong = Problems()
    found = nets.opened(seed, wrong)
    examples = []
    for s in found:
        with wrong.noted():
            assert s.built is not None
            examples.append(example_for(s.built, shape, seed))
            tried(s.net, s.name, examples[-1])
    wrong.say()

    def run() -> Analysis:
        from prunus.lab.analyses import effective_densities

        reached = [effective_densities(s.net, e) for s, e in zip(found, examples, strict=True)]
        names, rows, says, data = columns([s.name for s in found]), [], [], []
        for name, layers in zip(names, reached, strict=True):
            total, kept, used = (sum(getattr(r, f) for r in layers) for f in ("weights", "kept", "reached"))
            says.append(
                f"{name}: sparsity {1 - kept / total:.2%} directly, {1 - used / total:.2%} effectively: "
                f"{kept - used:,} of {kept:,} weights that are left lead nowhere."
            )
            rows += [(name, r.name, r.weights, r.kept, r.reached) for r in layers]
            data.append(
                {
                    "network": name,
                    "direct_sparsity": 1 - kept / total,
                    "effective_sparsity": 1 - used / total,
                    "layers": [vars(r) for r in layers],
                }
            )
        order = list(dict.fromkeys(r.name for layers in reached for r in layers))
        lines = [
            Line(f"{name}, {what}", tuple((float(order.index(r.name)), getattr(r, f) / r.weights) for r in layers))
            for name, layers in zip(names, reached, strict=True)
            for what, f in (("not zero", "kept"), ("on a path", "reached"))
        ]
        plot = Plot(
            "What is left, and what of it is on a path", "Layer, from the input", "Share of the weights", tuple(lines),
            percent_y=True, names_x=tuple(n.removesuffix(".weight") for n in order),
        )  # fmt: skip
        return Analysis(
            name="effective",
            title="Effective sparsity",
            source=ABOUT.source,
            says=tuple(says),
            tables=(Table("By layer", ("network", "layer", "weights", "not zero", "on a path"), tuple(rows)),),
            plots=(plot,),
            data={"networks": data},
            notes=("Biases, and what normalizations add, begin paths: what they feed passes a constant on.",),
            facts={"seed": seed},
        )

    return Work(f"would follow the paths through {len(found)} network(s)", {"networks": [s.name for s in found]}, run)
