"""Densities of layers or blocks that are dealt out over the whole model before any unit is chosen."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.ranking import NofM, Uniform
from prunus.parts.allocation.wrapped import Around
from prunus.parts.evidence.ahead import (
    ForwardDifferenceEvidence,
    LargeShareEvidence,
    LargeShareOfBlockEvidence,
    OutlierShareEvidence,
    TailExponentEvidence,
)

HALVINGS = 100
Shares = dict[str, float]


@dataclass(frozen=True)
class PerLayer(Around):
    """Each layer at a density of its own, written down here; within it the allocation inside chooses.

    The density that is asked for goes to layers that are not named. So the total is what the densities come to. A
    pattern of n of m is one of n' of m in each layer, n' the nearest to its density.
    """

    of: Allocation = Uniform(within="row")
    layers: tuple[str, ...] = ()
    densities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.densities) or not all(0.0 <= d <= 1.0 for d in self.densities):
            raise SpecError(f"{type(self).__name__}: one density in [0, 1] for each of its layers")

    @property
    def apart(self) -> bool:  # type: ignore[override]
        """Whether layers may come one by one: as in the allocation inside."""
        return self.of.apart

    @property
    def blocks(self) -> Callable[[tuple[int, ...]], Int[Tensor, "columns"]] | None:
        """Which block of the pattern inside each column belongs to; None without one."""
        found: Callable[[tuple[int, ...]], Tensor] | None = getattr(self.of, "blocks", None)
        return found

    def inside(self, path: str) -> Allocation:
        start = f"{path}." if path else ""
        pairs = [(n, d) for n, d in zip(self.layers, self.densities, strict=True) if n.startswith(start)]
        layers = tuple(n.removeprefix(start) for n, _ in pairs)
        return replace(self, layers=layers, densities=tuple(d for _, d in pairs))

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        own = dict(zip(self.layers, self.densities, strict=True))
        masks: Masks = {}
        for name, s in scores.items():
            told = {k: {n: v for n, v in all_.items() if n == name} for k, all_ in given.items()}
            of, share = self.of, own.get(name, density)
            if isinstance(of, NofM):
                n = max(1, round(share * of.m))
                of, share = (replace(of, n=n), n / of.m) if n < of.m else (of, 1.0)
            masks |= of({name: s}, share, {name: space[name]}, **told)
        return masks


@dataclass(frozen=True)
class Ahead(Around, ABC):
    """An allocation that gives every layer, or all layers of a block, a density of its own, by what is known of the
    whole model before anything is scored, and leaves the choice within layers to the one inside.

    The densities' mean, weighted with the layers' sizes, is the density asked for; what a layer cannot take (it keeps
    all it has) goes to the others. Around `NofM` the n of a pattern differs from layer to layer (OWL's mixed N:M): what
    was dealt out is rounded down to whole n, at least 1, and those that lost most by it are rounded up instead as long
    as the total allows. Fails: `SpecError` around other patterns, which have one density only.
    """

    of: Allocation = Uniform(within="row")
    per: Literal["block", "layer"] = "block"

    def __post_init__(self) -> None:
        if self.per not in ("block", "layer"):
            raise SpecError(f"{self}: densities are dealt out per 'block' or per 'layer'")
        if self.density is not None and not isinstance(self.of, NofM):
            raise SpecError(f"{self}: {self.of} has one density of its own, and none is left to be dealt out")

    def asks(self) -> Mapping[str, Evidence]:
        return {**self.of.asks(), **self.foresees()}

    @abstractmethod
    def foresees(self) -> Mapping[str, Evidence]:
        """One number per layer, as `layers`."""

    @abstractmethod
    def rule(self, layers: Shares, density: float) -> tuple[Callable[[float], Shares], float]:
        """Densities that rise with a number t, from 0 (the least that may be) to the one that comes with them
        (everything); what lies outside of [0, 1] is cut.
        """

    def settled(self, density: float, space: Space, there: Mapping[str, int], **evidence: Any) -> Allocation:
        known = {n: float(v) for n, v in evidence["layers"].items() if n in space}
        mean = sum(known.values()) / max(1, len(known))
        levels, most = self.rule({n: known.get(n, mean) for n in space}, density)
        units = {n: g.units for n, g in space.items()}
        # Rows that are cut one by one keep up to a unit each beyond their share: that is no reason to prune again.
        rounding = sum(g.shape[0] if len(g.shape) > 1 else 1 for g in space.values())
        left, every = sum(there.values()), sum(units.values())
        again = left < every and left <= density * every + rounding
        found = met(levels, most, units, there, 1.0 if again else density)
        if isinstance(self.of, NofM):
            found = whole(found, units, self.of.m, density)
        return PerLayer(self.of, tuple(found), tuple(found.values()))

    def __call__(
        self, scores: Scores, density: float, space: Space, *, layers: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        there = {n: count(s > -float("inf")) for n, s in scores.items()}
        some = {n: space[n] for n in scores}
        return self.settled(density, some, there, layers=layers)(scores, density, space, **given)


def met(
    levels: Callable[[float], Shares], most: float, units: Mapping[str, int], there: Mapping[str, int], density: float
) -> Shares:
    """The densities at the level at which as many units stay as asked; no layer keeps more than there is of it."""
    room = {n: there[n] / units[n] if units[n] else 0.0 for n in units}
    due = density * sum(units.values())
    if due >= sum(there.values()):
        return room

    def at(t: float) -> Shares:
        return {n: min(max(d, 0.0), room[n]) for n, d in levels(t).items()}

    low, high = 0.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = sum(d * units[n] for n, d in at(middle).items()) >= due
        low, high = (low, middle) if enough else (middle, high)
    return at(high)


def whole(shares: Shares, units: Mapping[str, int], m: int, density: float) -> Shares:
    """Densities in steps of 1/m, equal ones staying equal, of as much in all as there is room for."""
    layers: dict[float, list[str]] = {}
    for n, d in shares.items():
        layers.setdefault(round(d, 12), []).append(n)
    steps = {d: max(1, int(d * m + 1e-9)) for d in layers}
    size = {d: sum(units[n] for n in names) for d, names in layers.items()}
    left = density * m * sum(units.values()) - sum(steps[d] * size[d] for d in layers)
    for d in sorted(layers, key=lambda d: steps[d] - d * m):
        if steps[d] < m and size[d] <= left + 1e-6:
            steps[d], left = steps[d] + 1, left - size[d]
    return {n: steps[d] / m for d, names in layers.items() for n in names}


def spread_of(layers: Shares) -> tuple[Shares, bool]:
    """Numbers moved to [0, 1], least to most; and whether they differ at all."""
    low, high = min(layers.values()), max(layers.values())
    return {n: (v - low) / (high - low) if high > low else 0.5 for n, v in layers.items()}, high > low


@dataclass(frozen=True)
class OutlierDensities(Ahead):
    """Blocks keep more the more outliers they have: the share of |w| ||x|| above `times` its mean, moved to a range of
    2 `spread` around the density asked for (OWL: Yin et al. 2024, arXiv:2310.05175, section 4).

    Cost: a forward per batch through the dense model. Differs: blocks of unequal size are weighted with it, so that the
    total stays exact (the code takes the plain mean); densities beyond [0, 1] are cut and made up for by the others.
    """

    times: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.times > 0 and self.spread >= 0):
            raise SpecError(f"{self}: times is above 0, the spread at least 0")

    def foresees(self) -> Mapping[str, Evidence]:
        return {"layers": OutlierShareEvidence()}

    def rule(self, layers: Shares, density: float) -> tuple[Callable[[float], Shares], float]:
        place, _ = spread_of(layers)
        return lambda t: {n: 2 * self.spread * (p - 1) + t for n, p in place.items()}, 1 + 2 * self.spread


@dataclass(frozen=True)
class SpectralDensities(Ahead):
    """Blocks lose more the lighter the tails of their weights' spectra: the exponents alpha of their power laws, moved
    to sparsities between eta (1 - tau) and eta (1 + tau), eta such that the total is met (AlphaPruning: Lu et al. 2024,
    arXiv:2410.10912, eq. 2).

    Cost: the singular values of all weights; no data. Differs: sparsities beyond 1 are cut and made up for by the
    others; alpha is the code's estimate, whose reference is the least of the larger half of the values.
    """

    tau: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tau <= 1:
            raise SpecError(f"{self}: tau is in [0, 1]")

    def foresees(self) -> Mapping[str, Evidence]:
        return {"layers": TailExponentEvidence()}

    def rule(self, layers: Shares, density: float) -> tuple[Callable[[float], Shares], float]:
        place, differ = spread_of(layers)
        heavy = {n: 1 + self.tau * (2 * p - 1) if differ else 1.0 for n, p in place.items()}
        least = max(min(heavy.values()), 1e-6)
        return lambda t: {n: 1 - (1 - t) / least * h for n, h in heavy.items()}, 1.0


@dataclass(frozen=True)
class ForwardDensities(Ahead):
    """Every layer keeps its share 1 - (sparsity + `above`) anyway; of the rest blocks get shares in proportion to how
    much the loss moves when their weights do, from forward passes alone (ECoFLaP: Sung et al. 2024, arXiv:2310.02998,
    section 3, and its official code).

    A block keeps n in proportion to its score, whatever its size, up to all it has; the rest goes to the others. Cost:
    2 `draws` forwards for each weight and batch. Differs: the code's scripts sum |dL| along z over a block's weights,
    as here; `weighted` multiplies by the sum of |w| (its "aobd"). Surplus from rounding is never dealt out twice, which
    the code does by a slip. Its losses are those of a few samples; here of all calibration batches.
    """

    above: float = 0.1
    eps: float = 1e-3
    draws: int = 1
    weighted: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.above >= 0 and self.eps > 0 and self.draws >= 1):
            raise SpecError(f"{self}: above is at least 0, eps above 0, draws at least 1")

    def foresees(self) -> Mapping[str, Evidence]:
        return {"layers": ForwardDifferenceEvidence()}

    def rule(self, layers: Shares, density: float) -> tuple[Callable[[float], Shares], float]:
        floor, top = max(0.0, density - self.above), max(layers.values())
        moved = {n: max(v, 1e-12 * top) / top if top > 0 else 1.0 for n, v in layers.items()}
        return lambda t: {n: floor + t * m for n, m in moved.items()}, 1 / min(moved.values())


@dataclass(frozen=True)
class DeviationDensities(Ahead):
    """Blocks, and layers within them, keep more the more large weights they have: density + spread (b + l), with b the
    share of a block's |w| above `often` times their mean and l that of a layer's above `times`, each less its mean over
    the model and divided by its largest deviation (DPPA's Dynamic Pruning: Zhu et al. 2024, arXiv:2403.02799).

    Cost: four passes over the weights; no data. Differs: both means are weighted with the layers' sizes, so that the
    total stays exact (the code: blocks count alike); densities beyond [0, 1] are cut and made up for by the others.
    """

    of: Allocation = Uniform(within="layer")
    often: float = 3.0
    times: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.often > 0 and self.times > 0 and self.spread >= 0):
            raise SpecError(f"{self}: often and times are above 0, the spread at least 0")

    def foresees(self) -> Mapping[str, Evidence]:
        return {"layers": LargeShareOfBlockEvidence(), "own": LargeShareEvidence()}

    def rule(self, layers: Shares, density: float) -> tuple[Callable[[float], Shares], float]:
        return lambda t: {n: t + self.spread * (v - 2) for n, v in layers.items()}, 1 + 4 * self.spread

    def settled(self, density: float, space: Space, there: Mapping[str, int], **evidence: Any) -> Allocation:
        both = [deviations({n: float(evidence[k].get(n, 0.0)) for n in space}, space) for k in ("layers", "own")]
        return super().settled(density, space, there, layers={n: sum(d[n] for d in both) for n in space})

    def __call__(
        self, scores: Scores, density: float, space: Space, *, layers: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        there, some = {n: count(s > -float("inf")) for n, s in scores.items()}, {n: space[n] for n in scores}
        own = given.pop("own")
        return self.settled(density, some, there, layers=layers, own=own)(scores, density, space, **given)


def deviations(shares: Shares, space: Space) -> Shares:
    """Numbers less their mean over units, the largest of them 1 or -1."""
    mean = sum(v * space[n].units for n, v in shares.items()) / max(1, sum(g.units for g in space.values()))
    most = max((abs(v - mean) for v in shares.values()), default=0.0)
    return {n: (v - mean) / most if most > 0 else 0.0 for n, v in shares.items()}
