"""Allocations that see to one thing and leave the rest to another one: what units cost, what every layer keeps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.groups import Group
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.density import ERK
from prunus.parts.allocation.ranking import GlobalRanking
from prunus.parts.allocation.selection import Rounding, kept
from prunus.parts.evidence.cost import UnitCostEvidence, UnitCurrency
from prunus.parts.evidence.training import KeptEvidence


class Around(Allocation, ABC):
    """An allocation around another one (`of`): it asks for what that one asks for, and rounds and ranks as it does."""

    of: Allocation

    @abstractmethod
    def __call__(self, *args: Any, **evidence: Any) -> Masks:
        """See `Allocation`."""

    def asks(self) -> Mapping[str, Evidence]:
        return self.of.asks()

    def settings(self) -> dict[str, Any]:
        return {**self.of.settings(), **super().settings()}

    @property
    def scope(self) -> Literal["global", "local"]:  # type: ignore[override]
        """Whether units compete across the network: as in the allocation inside."""
        return self.of.scope

    @property
    def pattern(self) -> bool:  # type: ignore[override]
        """True where the allocation inside imposes a pattern."""
        return self.of.pattern

    @property
    def density(self) -> float | None:
        """The only density that the allocation inside has; None where it has none of its own."""
        found: float | None = getattr(self.of, "density", None)
        return found

    @property
    def fits(self) -> Callable[[tuple[int, ...], tuple[int, ...]], bool] | None:
        """Which layers the allocation inside fits, by their units and weights; None where it fits all."""
        found: Callable[[tuple[int, ...], tuple[int, ...]], bool] | None = getattr(self.of, "fits", None)
        return found

    @property
    def rounding(self) -> Rounding:
        """Of the kept count."""
        found: Rounding = getattr(self.of, "rounding", "floor")
        return found


@dataclass(frozen=True)
class CostNormalized(Around):
    """score / cost: what a unit is worth for each multiply-accumulate, parameter or activation that it takes; then the
    allocation inside (group Fisher pruning, Liu et al. 2021, arXiv:2108.00708, by memory).

    The cost is what would be saved if the unit were the next to go, with all coupled slices, see `UnitCostEvidence`;
    at each event it is that of the network as it is by then. A unit that costs nothing stays. Meant for scores that
    are not negative: of those that are, the costlier is ranked higher.
    Cost: one traced run of the example (none for `params`). Fails: `SpecError` without an example.
    """

    of: Allocation = GlobalRanking()
    by: UnitCurrency = "macs"

    def __post_init__(self) -> None:
        if self.by not in get_args(UnitCurrency):
            raise SpecError(f"CostNormalized(by={self.by!r}): cost is one of {', '.join(get_args(UnitCurrency))}")

    def asks(self) -> Mapping[str, Evidence]:
        return {**self.of.asks(), "cost": UnitCostEvidence(self.by)}

    def __call__(
        self, scores: Scores, density: float, space: Space, *, cost: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        return self.of(per_cost(scores, cost), density, space, **given)


def per_cost(scores: Scores, cost: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "*units"]]:
    """Scores over costs in float64; infinite where a unit costs nothing, and -inf where it is pruned."""
    out: dict[str, Tensor] = {}
    for name, s in scores.items():
        c = cost[name].squeeze(-1).to(s.device)
        free = (c <= 0) & (s > -float("inf"))
        out[name] = (s.double() / c.masked_fill(c <= 0, 1.0)).masked_fill(free, float("inf"))
    return out


@dataclass(frozen=True)
class Protected(Around):
    """The allocation inside, but every layer keeps at least the share `floor` of its units.

    PruningBench protects a tenth of every group under a global ranking (Li et al. 2024, arXiv:2406.12315). What the
    protected layers take is taken from the others' share, so the total stays exact where the allocation inside is; a
    density below `floor` is the floor of every layer, though, and the floor then gives way to the density.
    """

    of: Allocation = GlobalRanking()
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise SpecError(f"Protected(floor={self.floor}) is the share of its units that a layer keeps, in [0, 1]")

    def __call__(self, scores: Scores, density: float, space: Space, **given: Any) -> Masks:
        floor = min(self.floor, density)
        guarded: dict[str, Group] = {
            n: replace(g, at_least=max(g.at_least, kept(floor, g.units, "ceil"))) for n, g in space.items()
        }
        return self.of(scores, density, guarded, **given)


@dataclass(frozen=True)
class Begun(Around):
    """`start` while nothing is pruned, the allocation inside from then on: a network that begins with a share dealt
    out to layers by their shapes and is pruned across layers later (GraNet from a sparse start: Liu et al. 2021,
    NeurIPS, arXiv:2106.10404).

    Cost: that of either.
    """

    of: Allocation = GlobalRanking()
    start: Allocation = ERK()

    def asks(self) -> Mapping[str, Evidence]:
        return {**self.start.asks(), **self.of.asks(), "sofar": KeptEvidence()}

    def __call__(
        self, scores: Scores, density: float, space: Space, *, sofar: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        part = self.start if all(bool(k.all()) for k in sofar.values()) else self.of
        return part(scores, density, space, **{n: given[n] for n in part.asks()})
