"""The linear algebra of reconstruction: a quadratic error, a support, and what is lost when columns leave it.

Throughout, the error of weights w in place of w0 is the sum over rows of (w - w0) H (w - w0)^T with H = E[x x^T],
damped: what the damping adds is a pull towards the weights as they were.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.core.errors import SpecError

ENTRIES = 1 << 25
PANEL = 256


def check_damp(owner: str, damp: float) -> None:
    """Refuse a damping that is no share."""
    if not damp >= 0:
        raise SpecError(f"{owner}(damp={damp}) must not be negative: it is a share of the mean of diag H")


def error(w: Float[Tensor, "out in"], w0: Float[Tensor, "out in"], h: Float[Tensor, "in in"]) -> float:
    """Sum over rows of (w - w0) H (w - w0)^T."""
    return float(((w - w0) @ h * (w - w0)).sum())


def on_support(
    w: Float[Tensor, "out in"], keep: Bool[Tensor, "out in"], h: Float[Tensor, "in in"]
) -> Float[Tensor, "out in"]:
    """The weights of least error that are zero where `keep` is not. H must have a Cholesky factor.

    One factorization where all rows have the same support; else one per row, in batches: out * in^3 / 3.
    """
    target = w @ h
    if bool((keep == keep[:1]).all()):
        left = keep[0].nonzero().squeeze(1)
        fitted = torch.zeros_like(w)
        if len(left):
            factor = torch.linalg.cholesky(h[left][:, left])
            fitted[:, left] = torch.cholesky_solve(target[:, left].T, factor).T
        return fitted
    return torch.cat([_row_by_row(t, k, h) for t, k in zip(*batches(len(h), target, keep), strict=True)])


def _row_by_row(target: Tensor, keep: Tensor, h: Tensor) -> Tensor:
    both = keep.unsqueeze(2) & keep.unsqueeze(1)
    # Outside of the support the identity, so that all rows are equally large and nothing comes in from there.
    system = torch.where(both, h, torch.eye(len(h), dtype=h.dtype, device=h.device))
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve((target * keep).unsqueeze(2), factor).squeeze(2)


def batches(width: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each tensor cut into as many rows as a `[rows, width, width]` array may have."""
    rows = max(1, ENTRIES // (width * width))
    return iter([t.split(rows) for t in tensors])


def upper(h: Float[Tensor, "in in"]) -> tuple[Float[Tensor, "in in"], bool]:
    """M upper triangular with H = M M^T, in the place of H, and whether there is one: then H^-1 = U^T U with U = M^-1,
    also upper.

    Column blocks from the last to the first, each a matrix product with those behind it, which are done. Cost:
    in^3 / 3, nearly all of it in products; a few columns of memory.
    """
    width = len(h)
    for stop in range(width, 0, -PANEL):
        start = max(0, stop - PANEL)
        left = torch.addmm(h[:stop, start:stop], h[:stop, stop:], h[start:stop, stop:].T, alpha=-1)
        found = torch.linalg.cholesky_ex(left[start:].flip(0, 1))
        if int(found.info) != 0:
            return h, False
        corner = h[start:stop, start:stop] = found.L.flip(0, 1)
        h[stop:, start:stop] = 0.0
        if start:
            torch.mm(left[:start], inverse_upper(corner).T, out=h[:start, start:stop])
    return h, True


def inverse_upper(m: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The inverse of an upper triangular matrix."""
    found: Tensor = torch.linalg.solve_triangular(m, torch.eye(len(m), dtype=m.dtype, device=m.device), upper=True)
    return found


class Removal:
    """Units (blocks of columns) that leave one after the other, the rest making up for each: OBS for whole columns.

    Attributes:
        w: `[out, in]`, the weights of least error without the units that have left.
        inverse: `[in, in]`, the inverse of H over what is left; zero elsewhere.
        there: `[units]`, which are left.
    """

    def __init__(self, w: Float[Tensor, "out in"], h: Float[Tensor, "in in"], columns: Int[Tensor, "units s"]) -> None:
        self.columns = columns
        self.w, self.inverse = w.clone(), torch.cholesky_inverse(torch.linalg.cholesky(h))
        self.there = torch.ones(len(columns), dtype=torch.bool, device=w.device)

    def losses(self) -> Float[Tensor, "units"]:
        """By how much the error rises when each unit leaves: tr(w_u ([H^-1]_uu)^-1 w_u^T); +inf for those that have."""
        blocks = self.inverse[self.columns.unsqueeze(2), self.columns.unsqueeze(1)]
        eye = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
        blocks = torch.where(self.there.reshape(-1, 1, 1), blocks, eye)
        owned = self.w[:, self.columns].permute(1, 2, 0)
        rises: Tensor = (owned * torch.linalg.solve(blocks, owned)).sum((1, 2))
        return rises.masked_fill(~self.there, torch.inf)

    def remove(self, units: Int[Tensor, "n"]) -> None:
        """Let these units leave together."""
        gone = self.columns[units].reshape(-1)
        across = self.inverse[:, gone]
        solved = torch.linalg.solve(self.inverse[gone][:, gone], across.T)
        self.w -= self.w[:, gone] @ solved
        self.inverse -= across @ solved
        self.w[:, gone] = 0
        self.inverse[:, gone] = 0
        self.inverse[gone] = 0
        self.there[units] = False
