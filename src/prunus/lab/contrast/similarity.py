"""How alike the masks of a contrast are: between arms, and between the seeds of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from statistics import fmean

from torch import Tensor

from prunus.lab.contrast.sheet import Cell, Sheet
from prunus.report.contrast_records import Similarity

Masks = Mapping[str, Tensor]


def similarities(sheet: Sheet, masks: Callable[[str], Masks | None]) -> Iterator[Similarity]:
    """Problem by problem and point by point, for the arms that are no baselines and have masks.

    Args:
        sheet: the contrast and its runs.
        masks: key of a run -> parameter -> True where kept; None where the store has none.

    **Cost**: reads the masks of all seeds of a point at a time.
    """
    for problem in sheet.problems:
        for keep in sheet.tier.points(sheet.contrast.points):
            found: dict[str, dict[int, Masks]] = {}
            for arm in sheet.contrast.arms:
                if arm.recipe is not None and not arm.baseline and keep in sheet.points(arm):
                    by_seed = _masks(sheet, Cell(problem, arm.name, keep), masks)
                    found |= {arm.name: by_seed} if by_seed else {}
            if found:
                rows = [[_alike(found[a], found[b], same=a == b) for b in found] for a in found]
                yield Similarity(problem=problem, keep=keep, arms=list(found), overlap=rows)


def _masks(sheet: Sheet, cell: Cell, masks: Callable[[str], Masks | None]) -> dict[int, Masks]:
    rate, found = sheet.rate(cell), {}
    for seed in sheet.records(cell) if rate is not None else ():
        spec = sheet.spec(cell, rate or 0.0, seed)
        left = None if spec is None else masks(spec.key)
        if left:
            found[seed] = left
    return found


def _alike(left: Mapping[int, Masks], right: Mapping[int, Masks], *, same: bool) -> float | None:
    """The mean over seeds; of one arm, over pairs of its seeds."""
    pairs = list(combinations(left, 2)) if same else [(s, s) for s in left if s in right]
    values = [v for a, b in pairs if (v := overlap(left[a], right[b])) is not None]
    return fmean(values) if values else None


def overlap(left: Masks, right: Masks) -> float | None:
    """Weights that both keep over weights that either keeps (Jaccard 1901), of the parameters that both rank.

    None where they rank nothing in common, or nothing is kept.
    """
    common = [n for n in left if n in right and left[n].shape == right[n].shape]
    both = sum(int((left[n] & right[n]).sum()) for n in common)
    either = sum(int((left[n] | right[n]).sum()) for n in common)
    return both / either if either else None
