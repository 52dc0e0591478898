"""The best of every row: exactly as many as asked, ties to the earlier."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SHORT = 8
"""Up to this length comparing every pair is faster than looking for a threshold."""
PIECE = 1 << 17
"""How many entries are looked at together, so that they stay in the cache."""


def rows_top_k(scores: Float[Tensor, "rows n"], k: int | Int[Tensor, "_"]) -> Bool[Tensor, "rows n"]:
    """The k best of every row (a number, or one per row), ties to the earlier column; -inf never stays.

    Nothing is sorted: short rows count who goes before whom, longer ones are cut at their k-th largest value, and only
    rows with a tie there are looked at again. Only where rows keep unequal numbers are they sorted. Cost: a few passes.
    """
    rows, n = scores.shape
    host = scores.device.type == "cpu"
    if host:  # numpy compares and cuts several times faster than torch on a CPU
        values = (scores if scores.dtype in (torch.float32, torch.float64) else scores.float()).detach().numpy()
        keep = np.empty_like(values, dtype=bool)
    if n <= SHORT:
        if not host:
            return _before(scores, k)
        most = np.broadcast_to(k.numpy() if isinstance(k, Tensor) else k, rows)
        for start in range(0, rows, PIECE // SHORT):
            some = slice(start, start + PIECE // SHORT)
            _count(values[some], most[some], keep[some])
        return torch.from_numpy(keep)
    if isinstance(k, Tensor):
        if len(k) > 1 and bool((k != k[0]).any()):
            return _ranked(scores, k)
        k = int(k[0]) if len(k) else 0
    if k <= 0 or k >= n:
        return torch.zeros_like(scores, dtype=torch.bool) if k <= 0 else scores > -torch.inf
    if not host:
        return _on_device(scores, k)
    each = max(1, PIECE // n)
    for start in range(0, rows, each):
        _cut(values[start : start + each], k, keep[start : start + each])
    return torch.from_numpy(keep)


def _cut(values: np.ndarray, k: int, keep: np.ndarray) -> None:
    """Keep what reaches each row's k-th largest value."""
    edge = values.shape[1] - k
    threshold = np.partition(values, edge, axis=1)[:, edge : edge + 1]
    np.greater_equal(values, threshold, out=keep)
    tied = (np.count_nonzero(keep, axis=1) != k).nonzero()[0]
    if len(tied):
        some, least = values[tied], threshold[tied]
        above, equal = some > least, some == least
        left = k - np.count_nonzero(above, axis=1)[:, None]
        keep[tied] = above | equal & (equal.cumsum(axis=1) <= left) & (least > -np.inf)


def _on_device(scores: Tensor, k: int) -> Tensor:
    threshold = scores.kthvalue(scores.shape[1] - k + 1, dim=1, keepdim=True).values
    above, equal = scores > threshold, scores == threshold
    left = k - above.sum(1, keepdim=True)
    return above | equal & (equal.cumsum(1) <= left) & (threshold > -torch.inf)


def _ranked(scores: Tensor, k: Tensor) -> Tensor:
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(scores.shape[1], device=scores.device).expand_as(order))
    return (rank < k.unsqueeze(1)) & (scores > -torch.inf)


def _count(values: np.ndarray, k: np.ndarray, keep: np.ndarray) -> None:
    """Count, for every entry, those of its row that go before it."""
    columns = np.ascontiguousarray(values.T)
    n, rows = columns.shape
    # To begin with all later entries go before an earlier one; each that does not is taken off again.
    before = np.repeat(np.arange(n - 1, -1, -1, dtype=np.int8)[:, None], rows, axis=1)
    first = np.empty(rows, dtype=bool)
    for later in range(1, n):
        for earlier in range(later):
            np.greater_equal(columns[earlier], columns[later], out=first)  # of equals the earlier goes first
            before[later] += first.view(np.int8)
            before[earlier] -= first.view(np.int8)
    np.logical_and(before < k, columns > -np.inf, out=keep.T)


def _before(scores: Tensor, k: int | Tensor) -> Tensor:
    """The same on an accelerator."""
    at = torch.arange(scores.shape[1], device=scores.device)
    one, other = scores.unsqueeze(2), scores.unsqueeze(1)
    first = (other > one) | ((other == one) & (at < at.unsqueeze(1)))
    most = k.unsqueeze(1) if isinstance(k, Tensor) else k
    return (first.sum(2) < most) & (scores > -torch.inf)
