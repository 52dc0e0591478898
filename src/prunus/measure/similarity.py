"""How alike two choices of units are."""

from collections.abc import Mapping

from torch import Tensor

from prunus.core.counting import count
from prunus.core.errors import SpecError

Choice = Mapping[str, Tensor]


def jaccard(one: Choice, other: Choice) -> float:
    """|A and B| / |A or B| of what two sets of masks choose (True), over all groups together; 1 where both choose
    nothing (the similarity of drop criteria in Nowak et al. 2023, NeurIPS, arXiv:2306.12230, section 4.3).

    For what is dropped pass what is dropped: `{n: old[n] & ~new[n] for n in old}`; of masks as a whole two random ones
    of density d come to d / (2 - d) on average, so compare at one density only.
    Errors: `SpecError` for masks of different groups or shapes.
    """
    both, either = _counted(one, other)
    return sum(both.values()) / whole if (whole := sum(either.values())) else 1.0


def jaccards(one: Choice, other: Choice) -> dict[str, float]:
    """`jaccard`, of every group on its own."""
    both, either = _counted(one, other)
    return {n: both[n] / either[n] if either[n] else 1.0 for n in both}


def chance(one: Choice, other: Choice) -> float:
    """The Jaccard index that two choices of the same density in every group come to where they are independent: the
    expected number of shared units over that of units in either. `jaccard` above it says that they agree.

    Errors: `SpecError` as `jaccard`.
    """
    both, either = _counted(one, other)
    shared = {n: count(one[n].bool()) * count(other[n].bool()) / max(1, one[n].numel()) for n in both}
    united = sum(both[n] + either[n] - shared[n] for n in both)  # |A| + |B| less what they share
    return sum(shared.values()) / united if united else 1.0


def _counted(one: Choice, other: Choice) -> tuple[dict[str, int], dict[str, int]]:
    odd = [n for n in one.keys() | other.keys() if n not in one or n not in other or one[n].shape != other[n].shape]
    if odd:
        raise SpecError(f"two choices are compared group by group: {min(odd)!r} is not in both, or has another shape")
    pairs = {n: (one[n].bool(), other[n].bool().to(one[n].device)) for n in one}
    return {n: count(a & b) for n, (a, b) in pairs.items()}, {n: count(a | b) for n, (a, b) in pairs.items()}
