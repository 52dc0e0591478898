"""Optimal brain surgeon down the columns of a layer, all rows at once, in products of matrices.

With H = M M^T (M upper triangular) and U = M^-1, pruning column j by w -= e_j U_j,: with e_j = w_j / U_jj moves the
weights by D = E U in the end, and so E = D M: what the columns before a block have moved tells what they do to it,
w_B + (D_<B M_<B,B) U_BB, without the inverse of H outside of the blocks on its diagonal.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.symmetric import Symmetric, spans
from prunus.parts.reconstruct.solve import inverse_upper

LEAF = 16
"""Up to this many columns are updated one after the other."""

ACROSS = 1024
"""How many columns are told at a time what those before have moved: the factor's part for them is copied."""

Select = Callable[[Float[Tensor, "b out"], slice], Bool[Tensor, "b out"]]
"""`(root of what removing each weight costs, columns) -> keep`."""


@dataclass(eq=False)
class Sweep:
    """One pass down the columns. Arrays lie column after column, `[in, out]`, so that a column is in one piece.

    Attributes:
        w: the weights; pruned and updated in place, in their own precision.
        keep: what stays; overwritten where `select` says so.
        factor: M, in the place of H.
        block: how many columns are settled before the rest is updated.
        dead: `[in]`, inputs that are always zero: a weight there costs nothing.
        select: chooses from the weights of a block as the columns before have changed them; None takes `keep`.
        span: from how many columns of a block it chooses at a time; 0: from all of them.
    """

    w: Float[Tensor, "in out"]
    keep: Bool[Tensor, "in out"]
    factor: Symmetric
    block: int
    dead: Bool[Tensor, "in"]
    select: Select | None = None
    span: int = 0
    moved: Float[Tensor, "in out"] = field(init=False)

    def __post_init__(self) -> None:
        self.moved = torch.zeros_like(self.w)

    def run(self, start: int, stop: int) -> None:
        """Columns from `start` to `stop`, which know already what the ones before have moved (in `moved`)."""
        if stop - start <= self.block:
            mine, now = slice(start, stop), Block(self, start, stop).settled()
            torch.sub(self.w[mine], now, out=self.moved[mine])
            self.w[mine] = now
            return
        middle = start + halved(stop - start, self.block)
        self.run(start, middle)
        for mine in spans(stop, ACROSS, middle):
            across = self.factor.above(slice(start, middle), mine, self.w.dtype)
            self.moved[mine].addmm_(across.T, self.moved[start:middle])
        self.run(middle, stop)


class Block:
    """The columns of one block, as the ones before have changed them."""

    def __init__(self, sweep: Sweep, start: int, stop: int) -> None:
        self.sweep, self.start = sweep, start
        self.mine = slice(start, stop)
        corner = sweep.factor.corner(self.mine)
        self.u = inverse_upper(corner).to(sweep.w.dtype)
        self.each = corner.diagonal().to(sweep.w.dtype).unsqueeze(1)  # 1 / U_jj
        self.now = torch.addmm(sweep.w[self.mine], self.u.T, sweep.moved[self.mine])
        self.errors = torch.empty_like(self.now)
        self.gone = torch.empty_like(self.now)

    def settled(self) -> Float[Tensor, "b out"]:
        """The block's weights when all of its columns are done."""
        if not self.sweep.span:
            self.choose(0, len(self.now))
        self.columns(0, len(self.now))
        return self.now.mul_(self.sweep.keep[self.mine])  # several times faster than filling in zeros

    def choose(self, start: int, stop: int) -> None:
        """Settle what goes from these columns, counted from the block's first."""
        sweep, ours = self.sweep, slice(self.start + start, self.start + stop)
        if sweep.select is not None:
            worth = self.each[start:stop].masked_fill(sweep.dead[ours].unsqueeze(1), 0.0)
            sweep.keep[ours] = sweep.select((self.now[start:stop] * worth).abs_(), ours)
        torch.mul(~sweep.keep[ours], self.each[start:stop], out=self.gone[start:stop])

    def columns(self, start: int, stop: int) -> None:
        """Columns one after the other inside of `LEAF`, products above it."""
        leaf = self.sweep.span or LEAF
        if stop - start <= leaf:
            if self.sweep.span:
                self.choose(start, stop)
            for j in range(start, stop):
                if j > start:
                    self.now[j].addmv_(self.errors[start:j].T, self.u[start:j, j], alpha=-1)
                torch.mul(self.now[j], self.gone[j], out=self.errors[j])
            return
        middle = start + halved(stop - start, leaf)
        self.columns(start, middle)
        self.now[middle:stop].addmm_(self.u[start:middle, middle:stop].T, self.errors[start:middle], alpha=-1)
        self.columns(middle, stop)


def halved(width: int, step: int) -> int:
    """About half of `width`, a multiple of `step`."""
    return -(-width // step) // 2 * step
