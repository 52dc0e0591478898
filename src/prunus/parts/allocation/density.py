"""Allocations that first fix each layer's density by a rule, then keep the best units within it."""

from collections.abc import Mapping
from dataclasses import dataclass

from prunus.core.errors import SpecError
from prunus.core.groups import Group
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.dealing import by_counts, rounded_to_total
from prunus.parts.allocation.selection import Rounding, kept


@dataclass(frozen=True)
class ERK(Allocation):
    """Erdos-Renyi-Kernel: a layer's density is proportional to sum(weight.shape) / prod(weight.shape)
    (Evci et al. 2020, arXiv:1911.11134, section 3; ER of Mocanu et al. 2018 with `kernel=False`).

    Layers whose density would exceed 1 are made dense, all of them at once, until none does (making one dense only
    raises the others, so one at a time, as the official code has it, ends at the same set). Counts are rounded so
    that the total is exactly `kept(density, all units, rounding)` (largest remainder). Differs: the official code
    rounds each layer by itself, so its total is off by up to two weights per layer.
    """

    kernel: bool = True
    rounding: Rounding = "floor"

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        units = sum(space[n].units for n in scores)
        return by_counts(lambda k: self.counts(space, list(scores), k / units), scores, density, space, self.rounding)

    def raw(self, group: Group) -> float:
        """The unscaled density of a layer."""
        weight = group.weight or group.shape
        weight = weight if self.kernel else weight[:2]
        size = 1
        for n in weight:
            size *= n
        return sum(weight) / size

    def counts(self, space: Space, names: list[str], density: float) -> dict[str, int]:
        """Kept units per group; they sum to the exact total."""
        units = {n: space[n].units for n in names}
        total = kept(density, sum(units.values()), self.rounding)
        dense: set[str] = set()
        while True:
            free = [n for n in names if n not in dense]
            left = total - sum(units[n] for n in dense)
            mass = sum(self.raw(space[n]) * units[n] for n in free)
            scale = left / mass if mass else 0.0
            over = {n for n in free if scale * self.raw(space[n]) > 1.0}
            if not over:
                break
            dense |= over
        exact = {n: float(units[n]) if n in dense else scale * self.raw(space[n]) * units[n] for n in names}
        return rounded_to_total(exact, units, total)


@dataclass(frozen=True)
class SmartRatio(Allocation):
    """Smart-ratio: layer i of L (from 1, the last linear layer counted) keeps a share proportional to (L-i+1)^2 +
    (L-i+1), and the last linear layer a fixed 0.3 (Su et al. 2020, arXiv:2009.11094, section 4.2).

    Shares above 1 are cut and what they lose is pushed to the next layers. `decay=True` divides by i^2 as well, the
    paper's choice for VGG. The total is exactly `kept(density, all units, rounding)`. Layers count in the order the
    network declares them. Differs: the official code gives 0.3 to every linear layer, here only to the last, so that
    networks without convolutions have a ratio too; the last layer's 0.3 gives way where the budget is smaller.
    """

    last: float = 0.3
    decay: bool = False
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        if not 0.0 < self.last <= 1.0:
            raise SpecError(f"SmartRatio(last={self.last}) is a density, in (0, 1]")

    def __call__(self, scores: Scores, density: float, space: Space) -> Masks:
        units = sum(space[n].units for n in scores)
        return by_counts(lambda k: self.counts(space, list(scores), k / units), scores, density, space, self.rounding)

    def counts(self, space: Space, names: list[str], density: float) -> dict[str, int]:
        """Kept units per group; they sum to the exact total."""
        units = {n: space[n].units for n in names}
        total = kept(density, sum(units.values()), self.rounding)
        body = names[:-1] if len(names) > 1 and len(space[names[-1]].weight) == 2 else names
        exact: dict[str, float] = {}
        if body is not names:
            # The body must be able to hold the rest of the budget, and the head never takes more than its share of it.
            head = names[-1]
            room = sum(units[n] for n in body)
            exact[head] = min(max(self.last * units[head], total - room), float(total), float(units[head]))
        left = total - sum(exact.values())
        depth = len(names)
        shares = {n: self.share(i, depth) for i, n in enumerate(body, 1)}
        scale = left / sum(shares[n] * units[n] for n in body)
        exact |= spilled({n: scale * shares[n] * units[n] for n in body}, units)
        return rounded_to_total({n: exact[n] for n in names}, units, total)

    def share(self, i: int, depth: int) -> float:
        """The unscaled share of layer i of `depth`."""
        rest = depth - i + 1
        return (rest**2 + rest) / (i**2 if self.decay else 1)


def spilled(wanted: Mapping[str, float], units: Mapping[str, int]) -> dict[str, float]:
    """Cut to what each layer has; what one cannot take goes to the next, and what the last cannot to those before."""
    exact: dict[str, float] = {}
    spill = 0.0
    for n, share in wanted.items():
        exact[n] = min(share + spill, float(units[n]))
        spill += share - exact[n]
    for n in reversed(list(wanted)):
        taken = min(spill, units[n] - exact[n])
        exact[n] += taken
        spill -= taken
    return exact
