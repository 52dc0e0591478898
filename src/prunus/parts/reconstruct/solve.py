"""The linear algebra of reconstruction: a quadratic error, a support, and what is lost when columns leave it.

Throughout, the error of weights w in place of w0 is the sum over rows of (w - w0) H (w - w0)^T with H = E[x x^T],
damped: what the damping adds is a pull towards the weights as they were.
"""

from collections.abc import Collection, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.symmetric import Factored, Symmetric, spans
from prunus.parts.evidence.curvature import LEAST_PIVOT, searched

ENTRIES = 1 << 25
SAFE = 1e-4
"""Damped by as much, a matrix of second moments has a factor. Otherwise a copy is kept to try again with."""
TOLERATED = 300.0
"""How large products in float32 may be, in shares of what damping adds to the diagonal: their rounding, 2^-24 of it, is
then 2e-5 of the least that H is in any direction, and less by ten times where measured, for errors have signs."""
FEW = 8
"""How many panels' products are added up in float32."""
CACHED = 1 << 10
"""Rows of a panel that stay in a CPU's cache while they are worked on."""


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


def factored(h: Symmetric, damp: float, name: str, *, coarse: bool = False) -> Factored:
    """Put M into the place of a damped H = M M^T, M upper triangular: then H^-1 = U^T U with U = M^-1, also upper.
    Where it has been done already, nothing is.

    Damped as `settled` does. `coarse`: products in float32 where they hardly matter. Cost: in^3 / 3;
    no further matrix, but for dampings below `SAFE`. Errors: as `settled`.
    """
    if h.factored is None:
        dead = h.diagonal() == 0
        level = float(h.diagonal().mean())
        level, added = level if level > 0 else 1.0, 0.0
        spare = h.clone() if damp < SAFE else None

        def attempt(used: float) -> Tensor | None:
            nonlocal added
            h.add_to_diagonal_((used - added) * level)
            added = used
            done = upper_(h, TOLERATED * used * level if coarse else 0.0)
            pivots = h.diagonal()
            if done == 0 and float(pivots.min()) > LEAST_PIVOT * float(pivots.max()):
                return pivots
            if spare is None:
                restore_(h, done)
            else:
                h.panels = spare.clone().panels
                added = 0.0
            return None

        used = searched(attempt, damp, name, finite=h.finite())
        h.factored = Factored(damp, used, dead)
    assert h.factored.asked == damp
    return h.factored


def upper_(h: Symmetric, tolerated: float = 0.0) -> int:
    """M upper triangular with H = M M^T, in the place of H; returns 0, or which panel, and all before it, has none.

    Panels from the last to the first, each less its products with those behind it, which are done: in float32 with
    panels whose products with each other have a norm of about `tolerated` / 2^-24 at most.
    """
    panels, coarse = list(h.spans()), set[int]()
    for at in range(len(panels), 0, -1):
        span, panel = panels[at - 1]
        _add(panel, span, panels[at:], coarse={i - at for i in coarse})
        found = torch.linalg.cholesky_ex(panel[span].flip(0, 1))
        if int(found.info) != 0:
            return at
        corner = panel[span] = found.L.flip(0, 1)
        inverse = inverse_upper(corner).T
        for rows in _pieces(span.start, panel):
            panel[rows] = panel[rows] @ inverse
        if tolerated and at > 1:
            lengths = torch.linalg.vector_norm(panel[: span.start], dim=1).square()
            if float(lengths.max() * lengths.sum()) ** 0.5 <= tolerated:
                coarse.add(at - 1)
    return 0


def restore_(h: Symmetric, done: int) -> None:
    """Undo what `upper_` did up to the panel of that number, up to rounding."""
    panels = list(h.spans())
    for at in range(max(done, 1), len(panels) + 1):
        span, panel = panels[at - 1]
        if at != done:
            corner = panel[span].T.clone()
            for rows in _pieces(span.stop, panel):
                panel[rows] = panel[rows] @ corner
        _add(panel, span, panels[at:], alpha=1.0)


def _add(
    panel: Tensor, span: slice, behind: list[tuple[slice, Tensor]], alpha: float = -1.0, coarse: Collection[int] = ()
) -> None:
    """Add the products of a panel's rows with its columns, of the panels behind it, some rows at a time. Of those whose
    numbers are in `coarse`, a few are added up in float32.
    """
    fine = [other for i, (_, other) in enumerate(behind) if i not in coarse]
    rough = [other for i, (_, other) in enumerate(behind) if i in coarse]
    for rows in _pieces(span.stop, panel):
        for other in fine:
            panel[rows].addmm_(other[rows], other[span].T, alpha=alpha)
        for few in spans(len(rough), FEW):
            total = torch.zeros(rows.stop - rows.start, panel.shape[1], device=panel.device)
            for other in rough[few]:
                total.addmm_(other[rows].float(), other[span].float().T, alpha=alpha)
            panel[rows] += total


def _pieces(stop: int, like: Tensor) -> list[slice]:
    return spans(stop, CACHED if like.device.type == "cpu" else max(stop, 1))


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
