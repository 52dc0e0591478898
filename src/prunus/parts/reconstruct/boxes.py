"""Optimal brain surgeon where weights leave together: boxes of a row, one after the other."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.core.counting import count_rows
from prunus.core.layer import Layer
from prunus.parts.reconstruct.solve import batches, on_support


def without_boxes(
    layer: Layer, h: Float[Tensor, "in in"]
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"], int]:
    """What each row loses and which box leaves, step by step, and how many boxes a row has.

    The box of least w_B ([H^-1]_BB)^-1 w_B^T leaves, the rest of the row makes up for it, and H^-1 loses B (Frantar &
    Alistarh 2022, arXiv:2208.11580, section 4, group OBS). Of equals the later one leaves; boxes that were gone before
    leave first. Rows of which equally many boxes go stop there, others go on to the end.
    """
    columns = layer.box_columns
    gone = len(columns) - count_rows(layer.keep[:, columns].any(2))
    alike = len(gone) > 1 and bool((gone == gone[0]).all())
    steps = int(gone[0]) if alike else len(columns)
    allowed = torch.ones_like(layer.keep) if layer.allowed is None else layer.allowed
    whole = torch.cholesky_inverse(torch.linalg.cholesky(h))
    traces = [
        _eliminated(w, a, columns, whole, steps)
        for w, a in zip(*batches(len(h), on_support(layer.w, allowed, h), allowed[:, columns].any(2)), strict=True)
    ]
    losses, order = (torch.cat(t) for t in zip(*traces, strict=True))
    return losses, order, len(columns)


def _eliminated(
    w: Float[Tensor, "rows in"],
    allowed: Bool[Tensor, "rows boxes"],
    columns: Int[Tensor, "boxes c"],
    whole: Float[Tensor, "in in"],
    steps: int,
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    rows, (count, size) = len(w), columns.shape
    w, inverses = w.clone(), whole.expand(rows, -1, -1).clone()
    at = torch.arange(rows, device=w.device)
    eye = torch.eye(size, dtype=w.dtype, device=w.device)
    there = torch.ones_like(allowed)
    losses = torch.zeros(rows, steps, dtype=w.dtype, device=w.device)
    order = torch.zeros(rows, steps, dtype=torch.long, device=w.device)
    for step in range(steps):
        corners = inverses[:, columns.unsqueeze(2), columns.unsqueeze(1)]
        corners = torch.where(there.reshape(rows, count, 1, 1), corners, eye)
        owned = w[:, columns]
        solved = torch.linalg.solve(corners, owned.unsqueeze(3)).squeeze(3)
        scores = torch.where(allowed, (owned * solved).sum(2), -1.0).masked_fill(~there, torch.inf)
        j = count - 1 - scores.flip(1).argmin(1)
        across = inverses[at.unsqueeze(1), columns[j]]
        w -= (solved[at, j].unsqueeze(1) @ across).squeeze(1)
        inverses -= across.mT @ torch.linalg.solve(corners[at, j], across)
        w[at.unsqueeze(1), columns[j]] = 0.0
        there[at, j] = False
        losses[:, step], order[:, step] = scores[at, j].clamp(min=0.0), j
    return losses, order
