"""What a group demands of any selection: units that must stay, multiples, equal parts."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.counting import count
from prunus.core.errors import BudgetError
from prunus.core.groups import Group
from prunus.core.part import Masks, Scores, Space
from prunus.parts.allocation.selection import top_k


def protected(scores: Scores, space: Space) -> dict[str, Float[Tensor, "*units"]]:
    """Scores with the best units that every group keeps anyway raised to +inf.

    So no ranking can empty a group, and what a group's minimum and multiple take is taken from the others' share.
    """
    return {name: _raise_best(s, feasible(space[name], 0)) for name, s in scores.items()}


def _raise_best(scores: Tensor, least: int) -> Tensor:
    if least <= 0:
        return scores
    best = top_k([scores], min(least, scores.numel()))[0]
    return scores.masked_fill(best, torch.inf)


def best_of(group: Group, scores: Float[Tensor, "*units"], k: int) -> Bool[Tensor, "*units"]:
    """The k best units of one group, adjusted to its constraints: equal counts in `parts`, a multiple of `multiple`."""
    k = feasible(group, k)
    if group.parts == 1:
        return top_k([scores], k)[0]
    rows = scores.reshape(group.parts, -1)
    return torch.stack([top_k([row], k // group.parts)[0] for row in rows]).reshape(scores.shape)


def feasible(group: Group, k: int) -> int:
    """The nearest number of units at or below k that the group allows, and never below its minimum.

    Where `units` itself is no multiple, keeping everything stays possible; a group with fewer units than the multiple
    stays whole.
    """
    if k >= group.units:
        return group.units
    step = math.lcm(group.multiple, group.parts)
    least = min(group.units, math.ceil(max(group.at_least, 0) / step) * step)
    return max(least, k // step * step)


def affordable(counts: Callable[[int], Mapping[str, int]], space: Space, total: int) -> dict[str, int]:
    """Feasible counts by group that sum to at most `total`; every group's minimum where even these are more.

    counts: a number of units in all -> how a rule deals it out. Where multiples and minima push the sum above `total`,
    less is dealt out, found by bisection.
    """

    def fitted(k: int) -> dict[str, int]:
        return {n: feasible(space[n], c) for n, c in counts(k).items()}

    best = fitted(total)
    if sum(best.values()) <= total:
        return best
    low, high = 0, total
    best = {n: feasible(space[n], 0) for n in best}
    while high - low > 1:
        middle = (low + high) // 2
        found = fitted(middle)
        if sum(found.values()) <= total:
            low, best = middle, found
        else:
            high = middle
    return best


def respected(scores: Scores, masks: Masks, space: Space) -> Masks:
    """Masks with every group's own constraints met; groups without any are passed through."""
    return {
        name: mask
        if space[name].multiple == 1 and space[name].parts == 1
        else best_of(space[name], scores[name], count(mask))
        for name, mask in masks.items()
    }


def check_pattern(what: str, own: float, density: float) -> None:
    """Refuse a density that a pattern does not have; 1 leaves everything as it is.

    Errors: `BudgetError`.
    """
    if abs(density - own) > 1e-9 and density < 1.0:
        raise BudgetError(
            f"{what} keeps exactly {own:.4g} of the weights, but {density:.4g} was asked: "
            f"leave the sparsity out or pass sparsity={1 - own:.4g}"
        )
