"""Optimal brain surgeon on single weights: column after column, or greedily row by row."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.layer import Choose, Layer, Update
from prunus.core.part import Reconstruction
from prunus.parts.evidence.curvature import solvable
from prunus.parts.reconstruct.boxes import without_boxes
from prunus.parts.reconstruct.columns import Sweep
from prunus.parts.reconstruct.solve import batches, check_damp, factored, on_support

AMPLIFIED = 1 << 22
"""How large in / damp may be for float32: it bounds the condition number of the damped H."""


@dataclass(frozen=True)
class ObsUpdate(Reconstruction):
    """Column after column: what is zeroed in column j is made up for by the columns behind it, w -= (w_j / U_jj) U_j,:
    with H^-1 = U^T U (SparseGPT: Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1).

    `select="blocks"`: at every `block` columns the weights of least |w| / U_jj go, as the columns before have changed
    them, at the layer's share; of a pattern (N:M) as many in each of its blocks. A weight on an input that is always
    zero counts as zero. `select="masks"` takes the mask as it is, as it is taken anyway for patterns and boxes that the
    engine does not choose from. Whole units leave together, before the columns that stay, which is least squares.
    `fed="whole"` (the code's way): where single weights go block by block, by what the layers are fed while the block
    is whole, in one pass; "pruned": once those before are pruned, in a pass for each.

    Precision: float64, but for weights stored in float32 or coarser: they are swept in float32 where
    in <= 2^22 damp, so that rounding, which U amplifies by at most sqrt(in / damp + 1), stays below 1e-4 of the
    weights. H and its factor are float64; on the way to it, products that are small beside what the damping
    adds are made in float32 (`solve.TOLERATED`), and for such a sweep (and those of layers that share it and come
    later) it is then rounded to float32, but for blocks on its diagonal. Tested on inputs of the worst condition
    there is.
    Shapes: `[out, in] -> [out, in]`. Cost: in^3 / 3 + out * in^2, nearly all in matrix products, in^3 / 3 once
    for layers that are fed the same; half of H in memory, the weights once.
    Fails: as `LeastSquares`. Differs: exactly as many stay as the masks keep, ties to the earlier weight, where the
    code cuts each block at a threshold of its own; a kept weight on a dead input stays what it was (the code zeroes
    it), and a dead input counts as 0 in the mean of diag H (the code: as 1, whatever the scale of the others).
    """

    block: int = 128
    damp: float = 0.01
    select: Literal["blocks", "masks"] = "blocks"
    fed: Literal["whole", "pruned"] = "whole"

    def __post_init__(self) -> None:
        check_damp("ObsUpdate", self.damp)
        if self.block < 1 or self.select not in ("blocks", "masks") or self.fed not in ("whole", "pruned"):
            raise SpecError(f"{self}: block >= 1, select is 'blocks' or 'masks', and fed 'whole' or 'pruned'")

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        return self.select == "blocks"

    def operations(self, out: int, width: int, shared: int = 1) -> float:
        """FLOPs for a layer of `[out, width]`, of `shared` that are fed the same."""
        return width**3 / 3 / shared + out * width**2

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        if layer.whole_columns:
            return Update(on_support(layer.w, layer.keep, solvable(layer.gram, self.damp, layer.name)), layer.keep)
        half = layer.half
        found = factored(half, self.damp, layer.name, coarse=coarsely(layer))
        span, chooses = layer.span, self.select == "blocks"
        dtype, block = precision(layer, found.used), max(span, self.block // span * span)
        if dtype == torch.float32:
            half.narrow_(block)
        sweep = Sweep(
            w=layer.stored_w,
            keep=layer.keep if layer.own else layer.keep.clone(memory_format=torch.contiguous_format),
            factor=half,
            block=block,
            dead=found.dead,
            select=(lambda worth, columns: choose(worth.T, columns).T) if chooses else None,
            span=span if chooses and span > 1 else 0,
            dtype=dtype,
        )
        return Update(sweep.swept().T, sweep.keep)


def precision(layer: Layer, damp: float) -> torch.dtype:
    """In what the weights of a layer are swept: float32 where that is fine enough, and products are really float32."""
    return torch.float32 if layer.width <= AMPLIFIED * damp and coarsely(layer) else torch.float64


def coarsely(layer: Layer) -> bool:
    """Whether a layer's weights are no finer than float32, and products in it are."""
    return layer.stored != torch.float64 and exact_products()


def exact_products() -> bool:
    """Whether products of float32 matrices are not rounded to something coarser on the way (TF32, bfloat16)."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # backends were set one by one: some may round
        return False


@dataclass(frozen=True)
class ExactObs(Reconstruction):
    """Each row gives up its weight of least w_j^2 / [H^-1]_jj, and is updated, one weight at a time; then rows are cut
    where their traces of losses, ranked over the whole layer, say so (OBC: Frantar & Alistarh 2022, arXiv:2208.11580,
    algorithms 1 and 2).

    Boxes of a row leave whole, by w_B ([H^-1]_BB)^-1 w_B^T. As many stay as the masks keep: in the layer, in each row
    where all rows of the masks keep equally many, in each block of a pattern. Shapes: `[out, in] -> [out, in]`. Cost:
    out * in^2 * (weights removed per row) + out * in^3 / 3, so for layers of a few thousand inputs at most. Fails: as
    `LeastSquares`; where neither single weights nor boxes of a row are pruned the mask is taken as it is. Differs: the
    official code counts how many of a row's losses are among the layer's smallest, as done here; `damp` is relative
    (absolute 1 where H is singular there).
    """

    damp: float = 1e-4
    chooses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_damp("ExactObs", self.damp)

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        h = solvable(layer.gram, self.damp, layer.name)
        if layer.box is not None:
            keep = boxes_kept(layer, h)
            return Update(on_support(layer.w, keep, h), keep)
        if not layer.free or layer.whole_columns:
            return Update(on_support(layer.w, layer.keep, h), layer.keep)
        rows, width = layer.keep.shape
        gone = (~layer.keep).sum(1)
        allowed = torch.ones_like(layer.keep) if layer.allowed is None else layer.allowed
        block = torch.zeros(width, dtype=torch.long, device=h.device) if layer.block is None else layer.block
        room = torch.zeros(rows, int(block.max()) + 1, dtype=torch.long, device=h.device)
        by_row = layer.block is not None or (rows > 1 and bool((gone == gone[0]).all()))
        room.scatter_add_(
            1, block.expand(rows, -1), (~layer.keep).long() if by_row else torch.ones_like(block).expand(rows, -1)
        )
        whole = torch.cholesky_inverse(torch.linalg.cholesky(h))
        traces = [
            eliminated(w, a, r, block, whole)
            for w, a, r in zip(*batches(width, on_support(layer.w, allowed, h), allowed, room), strict=True)
        ]
        losses, order = (torch.cat(t) for t in zip(*traces, strict=True))
        if not by_row:
            gone = cut(losses, int(gone.sum()))
        keep = torch.ones_like(layer.keep)
        for row, n in enumerate(gone.tolist()):
            keep[row, order[row, :n]] = False
        return Update(on_support(layer.w, keep, h), keep)


def boxes_kept(layer: Layer, h: Float[Tensor, "in in"]) -> Bool[Tensor, "out in"]:
    """As many boxes as the masks keep, those that greedy elimination leaves."""
    losses, order, each = without_boxes(layer, h)
    columns = layer.box_columns
    gone = (~layer.keep[:, columns].any(2)).sum(1)
    if losses.shape[1] == each:  # rows of unequal numbers were followed to the end
        gone = cut(losses, int(gone.sum()))
    keep = torch.ones_like(layer.keep)
    for row, n in enumerate(gone.tolist()):
        keep[row, columns[order[row, :n]].reshape(-1)] = False
    return keep


def cut(losses: Float[Tensor, "rows n"], total: int) -> Int[Tensor, "rows"]:
    """How many of each row's losses are among the `total` smallest. Of ties the later go, so earlier rows stay."""
    flat = losses.flip(0).reshape(-1).argsort(stable=True)[:total]
    return torch.bincount(flat // losses.shape[1], minlength=len(losses)).flip(0)


def eliminated(
    w: Float[Tensor, "rows in"],
    allowed: Bool[Tensor, "rows in"],
    room: Int[Tensor, "rows blocks"],
    block: Int[Tensor, "in"],
    whole: Float[Tensor, "in in"],
) -> tuple[Float[Tensor, "rows in"], Int[Tensor, "rows in"]]:
    """The greedy elimination of every row: the loss of each step, and which column went; what was gone goes first.

    `room`: how many may go from each block of columns. Steps that no row has are +inf.
    """
    w, room = w.clone(), room.clone()
    rows, width = w.shape
    inverses = whole.expand(rows, -1, -1).clone()
    at = torch.arange(rows, device=w.device)
    losses = torch.full_like(w, torch.inf)
    order = torch.zeros(rows, width, dtype=torch.long, device=w.device)
    there = torch.ones_like(allowed)
    for step in range(int(room.sum(1).max())):
        open_ = there & (room[:, block] > 0)
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        scores = torch.where(allowed, w.square() / diagonal, -1.0).masked_fill(~open_, torch.inf)
        # Of equals the later one goes, so that the earlier one stays.
        j = width - 1 - scores.flip(1).argmin(1)
        some = open_.any(1)
        losses[:, step] = torch.where(some, scores[at, j].clamp(min=0.0), torch.inf)
        order[:, step] = j
        pivot = torch.where(some, diagonal[at, j], torch.inf).unsqueeze(1)
        row = inverses[at, j]
        w -= row * (w[at, j].unsqueeze(1) / pivot)
        inverses -= row.unsqueeze(2) * (row / pivot).unsqueeze(1)
        w[at[some], j[some]] = 0.0
        there[at[some], j[some]] = False
        room[at[some], block[j[some]]] -= 1
    return losses, order
