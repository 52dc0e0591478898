"""prunus analyze similarity: how alike masks are, across methods and seeds."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prunus.cli.analyze import About, Work
from prunus.cli.output import Seed
from prunus.cli.subjects import NetsOrRuns, Subject
from prunus.core.errors import SpecError
from prunus.report.analysis import Analysis, Line, Plot, Table, columns

if TYPE_CHECKING:
    from torch import Tensor

ABOUT = About(
    question="How much do masks have in common, across methods and seeds, and beyond chance?",
    takes="two or more results or runs",
    source="The Jaccard index of what is kept (Jaccard 1901), as Nowak et al. 2023, NeurIPS, arXiv:2306.12230, use it.",
)


def analyze(nets: NetsOrRuns, seed: Seed = 0) -> Work:
    """Weights that both masks keep over weights that either keeps, beside what independent masks come to.

    Independent masks of the same density in every layer are the chance: above it, masks agree about more than layers.
    Tensors of which neither removes anything are left out. Of runs, methods are compared over their seeds.
    """
    found = nets.opened(seed, least=2)
    _check(found)

    def run() -> Analysis:
        from prunus.measure import chance, jaccard, jaccards

        names = columns([s.name for s in found])
        pairs: list[tuple[int, int, float, float]] = []
        for i, j in combinations(range(len(found)), 2):
            one, other = _masks(found[i], found[j])
            pairs.append((i, j, jaccard(one, other), chance(one, other)))
        tables = [_pairs(names, pairs), *_methods(found, pairs)]
        lines: tuple[Line, ...] = ()
        layers: list[str] = []
        if len(found) <= 6:
            every = [(f"{names[i]} and {names[j]}", jaccards(*_masks(found[i], found[j]))) for i, j, _, _ in pairs]
            layers = list(dict.fromkeys(n for _, by in every for n in by))
            lines = tuple(Line(name, tuple((float(layers.index(n)), v) for n, v in by.items())) for name, by in every)
        mean, by_chance = fmean(p[2] for p in pairs), fmean(p[3] for p in pairs)
        told = f"masks have {mean:.4f} in common on average over {len(pairs)} pair(s); independent ones {by_chance:.4f}"
        plot = Plot(
            "In common by layer", "Layer, from the input", "Jaccard index", lines,
            names_x=tuple(n.removesuffix(".weight") for n in layers),
        )  # fmt: skip
        return Analysis(
            name="similarity",
            title="How alike masks are",
            source=ABOUT.source,
            says=(told[0].upper() + told[1:] + ".",),
            tables=tuple(tables),
            plots=(plot,) if lines else (),
            data={
                "pairs": [
                    {"left": found[i].name, "right": found[j].name, "jaccard": v, "chance": c} for i, j, v, c in pairs
                ],
                "layers": {line.name: {layers[int(x)]: y for x, y in line.points} for line in lines},
            },
            facts={"networks": len(found), "seed": seed},
        )

    return Work(f"would compare the masks of {len(found)} networks", {"networks": [s.name for s in found]}, run)


def _masks(one: Subject, other: Subject) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The masks of two over what either removes something of; whole where one removes nothing."""
    import torch

    names = [n for n in one.weights if n in one.masks or n in other.masks]

    def whole(s: Subject, like: Subject) -> dict[str, Tensor]:
        return {n: s.masks[n] if n in s.masks else torch.ones_like(like.masks[n]) for n in names}

    return whole(one, other), whole(other, one)


def _check(found: list[Subject]) -> None:
    bare = [s.name for s in found if not s.masks]
    if bare:
        raise SpecError(
            f"{', '.join(bare)}: nothing was removed, or what was removed was cut out; masks are compared as results "
            f"that keep their shapes have them"
        )
    for s in found[1:]:
        first = found[0]
        odd = [n for n in (*first.masks, *s.masks) if first.weights.get(n) != s.weights.get(n)]
        if odd:
            raise SpecError(f"{first.name} and {s.name} are no masks of one network: they differ in {odd[0]}")


def _pairs(names: tuple[str, ...], pairs: list[tuple[int, int, float, float]]) -> Table:
    rows = tuple((names[i], names[j], v, c, v - c) for i, j, v, c in pairs)
    return Table("Pairs of masks", ("left", "right", "in common", "by chance", "beyond"), rows, ".4f")


def _methods(found: list[Subject], pairs: list[tuple[int, int, float, float]]) -> list[Table]:
    """Over seeds: methods against each other at equal seeds, and each with itself at different ones."""
    kinds = list(dict.fromkeys(s.kind for s in found))
    if len(kinds) == len(found) or any(s.seed is None for s in found):
        return []
    by: dict[tuple[str, str], list[float]] = {}
    for i, j, value, _ in pairs:
        one, other = found[i], found[j]
        if (one.kind == other.kind) != (one.seed == other.seed):
            by.setdefault((one.kind, other.kind), []).append(value)
            if one.kind != other.kind:
                by.setdefault((other.kind, one.kind), []).append(value)
    cells: Any = {pair: fmean(values) for pair, values in by.items()}
    rows = tuple((a, *(cells.get((a, b)) for b in kinds)) for a in kinds)
    title = "Means over seeds: methods at equal seeds; on the diagonal, one method with different seeds"
    return [Table(title, ("method", *kinds), rows, ".4f")]
