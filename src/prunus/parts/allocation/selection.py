"""Exact selection of the k best units, without sorting or joining the whole network.

Ties are broken by index (the earlier unit stays), counts are exact, and the extra memory is a fraction of the
scores': the k-th largest value is bracketed from a sample, and one pass, in pieces that fit the cache, keeps what lies
above the bracket and gathers what lies inside it, which alone is ranked.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK = 1 << 16
SAMPLE = 1 << 14
ROUND_OFF = Fraction(1, 1 << 50)
Rounding = Literal["floor", "nearest", "ceil"]


def kept(density: float, units: int, rounding: Rounding = "floor") -> int:
    """How many of `units` stay at a density.

    `floor` removes floor(sparsity * units), as the Synaptic-Flow code does (`int((1 - density) * n)`); `nearest`
    keeps round(density * units), halves up, as the original SNIP code does; `ceil` removes ceil(sparsity * units). A
    density carries a few units of float rounding (1 - 0.9 is not 0.1, 2/3 is no binary fraction): a product that
    close to a half or a whole number counts as that number, so that 0.9 of 10 is 9 and two thirds of 3 is 2.
    """
    exact = Fraction(float(density)) * units
    halves = round(exact * 2)
    if abs(exact * 2 - halves) <= 2 * units * ROUND_OFF:
        exact = Fraction(halves, 2)
    if rounding == "nearest":
        return math.floor(exact + Fraction(1, 2))
    return math.ceil(exact) if rounding == "floor" else math.floor(exact)


def top_k(scores: Sequence[Float[Tensor, "..."]], k: int) -> list[Bool[Tensor, "..."]]:
    """Masks of the k highest scores over all tensors together; each mask has its tensor's shape.

    Units whose score is -inf never stay, so fewer than k may. Cost on the CPU: one pass over the scores by all threads,
    a second one only where scores tie at the edge of the bracket; extra memory the masks and the few per cent of the
    scores that lie in the bracket (all of them where fewer than 4 `SAMPLE` are ranked, or where the sample misled).
    """
    flats = [s.detach().reshape(-1) for s in scores]
    if len({f.dtype == torch.float64 for f in flats}) > 1:
        # A float64 threshold has no equal among float32 values: compare all of them in float64.
        flats = [f.double() for f in flats]
    total = sum(f.numel() for f in flats)
    if k <= 0:
        masks = [torch.zeros(f.shape, dtype=torch.bool, device=f.device) for f in flats]
    elif k >= total:
        masks = [f > -torch.inf for f in flats]
    elif all(f.device.type == "cpu" for f in flats):
        masks = _on_host(flats, k, total)
    else:
        masks = _on_device(flats, k)
    return [m.reshape(s.shape) for m, s in zip(masks, scores, strict=True)]


def _on_host(flats: list[Tensor], k: int, total: int) -> list[Tensor]:
    """Selection in cache-sized pieces; numpy compares and counts several times faster than torch on a CPU."""
    masks = [torch.empty(f.shape, dtype=torch.bool) for f in flats]
    pieces = [
        (values, keep.numpy())
        for flat, mask in zip(flats, masks, strict=True)
        for values, keep in zip(flat.split(CHUNK), mask.split(CHUNK), strict=True)
    ]
    low, high = _bracket(flats, k, total)
    if high == -math.inf:
        high = math.inf  # as many are to stay as have a score at all: no edge lies above those that have none
    while True:
        found = _each(pieces, partial(_split, low, high))
        above = sum(f.above for f in found)
        between = sum(len(f.where) for f in found)
        if above <= k and (k <= above + between or low == -math.inf):
            _keep_best(pieces, found, k - above)
            return masks
        if k < above:
            larger = sum(_each(pieces, partial(_write, np.greater, high)))
            if larger <= k:
                # More scores equal the upper edge than may stay: the first ones do.
                _keep_first(pieces, high, k - larger)
                return masks
        low, high = -math.inf, math.inf  # the sample misled: rank everything


class _Split(NamedTuple):
    """How many values of a piece reach the bracket's upper edge, and which lie inside it."""

    above: int
    where: np.ndarray
    values: np.ndarray


def _split(low: float, high: float, values: np.ndarray, keep: np.ndarray) -> _Split:
    above = _write(np.greater_equal, high, values, keep)
    inside = values > low if low == -math.inf else values >= low
    inside ^= keep
    where = inside.nonzero()[0]
    return _Split(above, where, values[where])


def _write(compare: np.ufunc, threshold: float, values: np.ndarray, keep: np.ndarray) -> int:
    compare(values, threshold, out=keep)
    return int(np.count_nonzero(keep))


def _keep_best(pieces: "list[Piece]", found: list[_Split], k: int) -> None:
    """Add the k best of what lies in the bracket; ties to the earlier."""
    pool = np.concatenate([f.values for f in found])
    if k <= 0:
        return
    threshold = np.partition(pool, len(pool) - k)[len(pool) - k] if k < len(pool) else -math.inf
    ties = k - int(np.count_nonzero(pool > threshold)) if k < len(pool) else 0
    for (_, keep), (_, where, values) in zip(pieces, found, strict=True):
        keep[where[values > threshold]] = True
        if ties:
            equal = where[values == threshold][:ties]
            keep[equal] = True
            ties -= len(equal)


def _keep_first(pieces: "list[Piece]", threshold: float, k: int) -> None:
    """Add the first k values that equal the threshold."""
    for values, keep in pieces:
        if k <= 0:
            return
        equal = (_array(values) == threshold).nonzero()[0][:k]
        keep[equal] = True
        k -= len(equal)


def _on_device(flats: list[Tensor], k: int) -> list[Tensor]:
    """Selection on an accelerator, by one joint sort key: a copy of the scores, and a k-th value."""
    pool = torch.cat(flats)
    threshold = pool.kthvalue(len(pool) - k + 1).values
    keep = pool > threshold
    ties = ((pool == threshold) & (pool > -torch.inf)).nonzero().squeeze(1)[: k - int(keep.sum())]
    keep[ties] = True
    return list(keep.split([len(f) for f in flats]))


def _bracket(flats: list[Tensor], k: int, total: int) -> tuple[float, float]:
    """Two values that hold the k-th largest between them with overwhelming probability, from an even sample."""
    if total <= 4 * SAMPLE:
        return -torch.inf, torch.inf
    stride = max(1, total // SAMPLE)
    # A fixed odd offset per tensor keeps the sample deterministic and off any periodic layout of the weights.
    sample = torch.cat([f[(7919 * i) % min(stride, len(f)) :: stride].cpu() for i, f in enumerate(flats) if len(f)])
    ordered = sample.double().sort(descending=True).values
    n = len(ordered)
    share = k / total
    margin = int(5 * math.sqrt(n * share * (1 - share))) + 8
    upper, lower = int(n * share) - margin, int(n * share) + margin
    high = float(ordered[upper]) if upper >= 0 else torch.inf
    low = float(ordered[lower]) if lower < n else -torch.inf
    return low, high


Piece = tuple[Tensor, np.ndarray]
T = TypeVar("T")


def _each(pieces: list[Piece], work: Callable[[np.ndarray, np.ndarray], T]) -> list[T]:
    """The work on every piece, in order, on torch's number of threads: numpy lets go of the interpreter's lock."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads < 2:
        return [work(_array(values), keep) for values, keep in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda piece: work(_array(piece[0]), piece[1]), pieces))


def _array(values: Tensor) -> np.ndarray:
    return (values if values.dtype in (torch.float32, torch.float64) else values.float()).numpy()
