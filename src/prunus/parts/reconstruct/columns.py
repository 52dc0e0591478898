"""Optimal brain surgeon down the columns of a layer, all rows at once, in products of matrices.

With H = M M^T (M upper triangular) and U = M^-1, pruning column j by w -= e_j U_j,: with e_j = w_j / U_jj moves the
weights by D = E U in the end, and so E = D M: what the columns before a block have moved tells what they do to it,
w_B + (D_<B M_<B,B) U_BB, without the inverse of H outside of the blocks on its diagonal. So the weights stay where they
are until all is done, in the type that they have there, and D alone is held in the precision of the sweep.
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

ACROSS = 256
"""How many columns are told at a time what those before have moved: the factor's part for them is copied."""

Select = Callable[[Float[Tensor, "b out"], slice], Bool[Tensor, "b out"]]
"""`(root of what removing each weight costs, columns) -> keep`."""


@dataclass(eq=False)
class Sweep:
    """One pass down the columns. What is made here lies column after column, `[in, out]`, a column in one piece.

    Attributes:
        w: the weights as they were, in any type; only read.
        keep: what stays; overwritten where `select` says so.
        factor: M, in the place of H.
        block: how many columns are settled before the rest is updated.
        dead: `[in]`, inputs that are always zero: a weight there costs nothing.
        select: chooses from the weights of a block as the columns before have changed them; None takes `keep`.
        span: from how many columns of a block it chooses at a time; 0: from all of them.
        dtype: the precision.
        moved: by how much the weights have become less: of columns to come, what those before do to them, times M.
    """

    w: Float[Tensor, "out in"]
    keep: Bool[Tensor, "out in"]
    factor: Symmetric
    block: int
    dead: Bool[Tensor, "in"]
    select: Select | None = None
    span: int = 0
    dtype: torch.dtype = torch.float64
    moved: Float[Tensor, "in out"] = field(init=False)

    def __post_init__(self) -> None:
        self.moved = torch.zeros(self.keep.T.shape, dtype=self.dtype, device=self.w.device)

    def swept(self) -> Float[Tensor, "in out"]:
        """The new weights, when all columns are done, in the place of what they have moved by."""
        self.run(0, len(self.moved))
        for mine in spans(len(self.moved), ACROSS):
            torch.sub(self.before(mine), self.moved[mine], out=self.moved[mine])
        return self.moved

    def before(self, columns: slice) -> Float[Tensor, "b out"]:
        """Columns of the weights as they were, a copy."""
        part = self.w[:, columns].to(self.dtype, memory_format=torch.contiguous_format)
        return torch.empty_like(part.T, memory_format=torch.contiguous_format).copy_(part.T)

    def run(self, start: int, stop: int) -> None:
        """Columns from `start` to `stop`, which know already what the ones before have moved (in `moved`)."""
        if stop - start <= self.block:
            block = Block(self, start, stop)
            torch.sub(block.before, block.settled(), out=self.moved[start:stop])
            if self.select is not None:
                self.keep[:, start:stop] = block.keep.T.contiguous()  # which is faster than writing across
            return
        middle = start + halved(stop - start, self.block)
        self.run(start, middle)
        for mine in spans(stop, ACROSS, middle):
            across = self.factor.above(slice(start, middle), mine, self.dtype)
            self.moved[mine].addmm_(across.T, self.moved[start:middle])
        self.run(middle, stop)


class Block:
    """The columns of one block, as the ones before have changed them."""

    def __init__(self, sweep: Sweep, start: int, stop: int) -> None:
        self.sweep, self.mine = sweep, slice(start, stop)
        corner = sweep.factor.corner(self.mine)
        self.u = inverse_upper(corner).to(sweep.dtype)
        self.each = corner.diagonal().to(sweep.dtype).unsqueeze(1)  # 1 / U_jj
        self.before = sweep.before(self.mine)
        self.now = torch.addmm(self.before, self.u.T, sweep.moved[self.mine])
        self.worth = self.each.masked_fill(sweep.dead[self.mine].unsqueeze(1), 0.0)
        self.keep = torch.empty(self.now.shape, dtype=torch.bool, device=self.now.device)
        self.errors = torch.empty_like(self.now)
        self.gone = torch.empty_like(self.now)

    def settled(self) -> Float[Tensor, "b out"]:
        """The block's weights when all of its columns are done."""
        if not self.sweep.span:
            self.choose(0, len(self.now))
        self.columns(0, len(self.now))
        return self.now.mul_(self.keep)  # several times faster than filling in zeros

    def choose(self, start: int, stop: int) -> None:
        """Settle what goes from these columns, counted from the block's first."""
        own, ours = slice(start, stop), slice(self.mine.start + start, self.mine.start + stop)
        pick, worth = self.sweep.select, self.worth[own]
        self.keep[own] = self.sweep.keep[:, ours].T if pick is None else pick((self.now[own] * worth).abs_(), ours)
        torch.mul(~self.keep[own], self.each[own], out=self.gone[own])

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
