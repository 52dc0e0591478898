"""Units of all groups in one ranking, and scores that can be compared between groups."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.part import Masks, Scores, Space
from prunus.parts.allocation.constraints import best_of, protected, respected
from prunus.parts.allocation.selection import Rounding, kept, top_k

Normalize = Literal["none", "mean", "max", "sum", "l2", "standard"]


def normalized(scores: Scores, by: Normalize) -> Scores:
    """Every group's scores over the mean, largest, sum or l2 norm of their own magnitudes, so that groups can be
    compared; or ("standard") their distance from their mean in standard deviations (n - 1 in the denominator).

    Pruned units (-inf) are left out of the divisor and stay what they are; a group of zeros stays as it is, one of
    equal scores becomes zeros where it is standardized. Within a group no order changes. Cost: one float64 copy of the
    scores, none for "none".
    """
    return scores if by == "none" else {name: _normalized(s, by) for name, s in scores.items()}


def _normalized(scores: Float[Tensor, "*units"], by: Normalize) -> Float[Tensor, "*units"]:
    whole = scores.double()
    there = whole[whole.isfinite()].abs()
    if not there.numel() or not there.any():
        return whole
    if by == "standard":
        signed = whole[whole.isfinite()]
        spread = float(signed.std()) if signed.numel() > 1 else 0.0
        alike = spread <= 1e-12 * float(there.max())  # nothing but round-off
        return whole.masked_fill(whole.isfinite(), 0.0) if alike else (whole - signed.mean()) / spread
    if by == "l2":
        return whole / there.square().sum().sqrt()
    if by == "sum":
        return whole / there.sum()
    return whole / (there.mean() if by == "mean" else there.max())


def check_normalize(by: str) -> None:
    """Refuse a divisor that there is none of."""
    if by not in get_args(Normalize):
        raise SpecError(f"normalize={by!r}: scores of a group are divided by one of {', '.join(get_args(Normalize))}")


def best_together(scores: Scores, density: float, space: Space, rounding: Rounding) -> Masks:
    """The best units of all groups, whichever they lie in, but for what each group demands."""
    if not scores:
        return {}
    guarded = protected(scores, space)
    k = kept(density, sum(s.numel() for s in scores.values()), rounding)
    masks = dict(zip(scores, top_k(list(guarded.values()), k), strict=True))
    # at_least outranks the budget where the two contradict: the engine reports the density that came out.
    for name, mask in masks.items():
        if count(mask) < min(space[name].at_least, mask.numel()):
            masks[name] = best_of(space[name], scores[name], space[name].at_least)
    return respected(scores, masks, space)
