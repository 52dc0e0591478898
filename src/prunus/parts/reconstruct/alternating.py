"""Support and weights of a layer together: alternating directions on the sparse least squares problem."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.counting import count, count_rows
from prunus.core.errors import SpecError
from prunus.core.layer import Choose, Layer, Update
from prunus.core.part import Reconstruction
from prunus.core.rows import rows_top_k
from prunus.parts.evidence.curvature import solvable
from prunus.parts.reconstruct.solve import check_damp, on_support

SETTLED, FROM = 0.0003, 30
"""After `FROM` iterations it ends where the support changes by less than this share of what stays."""


@dataclass(frozen=True)
class Alternating(Reconstruction):
    """min tr (B - W) H (B - W)^T over B with as many weights as the masks keep, by alternating directions: B fits under
    a pull rho to D, D is B + V / rho without its smallest entries, V adds up what they differ by. Then conjugate
    gradients on the support that came out (ALPS: Meng et al. 2024, arXiv:2406.07831, algorithm 1 and 2).

    Inputs are scaled to unit mean square first. Every `every` iterations rho grows by 1.3, 1.2 or 1.1 where more than
    0.1, 0.005 or none of what stays has changed; while it has not grown yet and little changes, it is a fifth of it.
    As many stay as the masks keep: in the layer, in each row where all rows of the masks keep equally many, in each
    block of a pattern. Shapes: `[out, in] -> [out, in]`. Cost: 9 in^3 for the eigenvectors, 2 out * in^2 and a
    selection per iteration (tens to `rounds`), out * in^2 for each of `steps`; all in float64. Fails: as
    `LeastSquares`; whole units take the mask as it is, fitted. Differs: float64 where the code iterates in float32; the
    support is that of D, as in the paper (the code's that of the largest entries of B, the same once it has settled).
    """

    damp: float = 0.01
    rho: float = 0.1
    rounds: int = 300
    every: int = 3
    steps: int = 10
    chooses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_damp("Alternating", self.damp)
        if not (self.rho > 0 and self.rounds >= 0 and self.every >= 1 and self.steps >= 0):
            raise SpecError(f"{self}: rho is above 0, every at least 1, rounds and steps at least 0")

    def __call__(self, layer: Layer, choose: Choose) -> Update:
        h = solvable(layer.gram, self.damp, layer.name)
        if not layer.free or layer.whole_columns:
            return Update(on_support(layer.w, layer.keep, h), layer.keep)
        size = h.diagonal().sqrt()
        unit, target = h / size.outer(size), layer.w * size
        d, keep = alternated(self, target, unit, best(layer))
        return Update(conjugate(d, target @ unit, keep, unit, self.steps) / size, keep)


def alternated(
    part: Alternating,
    target: Float[Tensor, "out in"],
    h: Float[Tensor, "in in"],
    best: Callable[[Tensor], Bool[Tensor, "out in"]],
) -> tuple[Float[Tensor, "out in"], Bool[Tensor, "out in"]]:
    """D and its support."""
    values, vectors = torch.linalg.eigh(h)
    goal, rho, grown = target @ h, part.rho, False
    first = keep = best(target.square())
    d, v = target * first, torch.zeros_like(target)
    before, size = keep, count(keep)
    for i in range(1, part.rounds + 1):
        b = ((goal - v + rho * d) @ vectors / (values + rho)) @ vectors.T
        near = b + v / rho
        keep = best(near.square())
        d = near * keep
        v = v + rho * (b - d)
        if i % part.every:
            continue
        changed, before = count(keep != before), keep
        if changed > 0.005 * size:
            rho, grown = rho * (1.3 if changed > 0.1 * size else 1.2), True
        elif grown and not changed:
            break
        elif grown:
            rho *= 1.1
        else:
            rho /= 5
            if changed:
                keep, d, v = first, target * first, torch.zeros_like(target)
        if i >= FROM and changed < SETTLED * size:
            break
    return d, keep


def best(layer: Layer) -> Callable[[Float[Tensor, "out in"]], Bool[Tensor, "out in"]]:
    """Selection over a whole layer, again and again: as many as the masks keep in each block of a pattern, in each row,
    or in all; of equals the earlier.
    """
    keep, rows = layer.keep, len(layer.keep)
    out = torch.zeros_like(keep) if layer.allowed is None else ~layer.allowed
    order = torch.arange(keep.shape[1], device=keep.device)
    parts = 1
    if layer.block is not None:
        order, parts = layer.block.argsort(stable=True), int(layer.block.max()) + 1
    each = count_rows(keep[:, order].reshape(rows * parts, -1))
    by_row = layer.block is not None or (rows > 1 and bool((each == each[0]).all()))

    def chosen(scores: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        ranked = scores.masked_fill(out, -torch.inf)[:, order]
        left = (
            rows_top_k(ranked.reshape(rows * parts, -1), each) if by_row else rows_top_k(ranked.reshape(1, -1), total)
        )
        return torch.empty_like(keep).index_copy_(1, order, left.reshape(keep.shape))

    total = count(keep)
    return chosen


def conjugate(
    start: Float[Tensor, "out in"],
    goal: Float[Tensor, "out in"],
    keep: Bool[Tensor, "out in"],
    h: Float[Tensor, "in in"],
    steps: int,
) -> Float[Tensor, "out in"]:
    """Conjugate gradients for w H = goal on the support, all rows at once."""
    w, left = start, (goal - start @ h) * keep
    along, size = left, left.square().sum(1, keepdim=True)
    floor = torch.finfo(h.dtype).tiny
    for _ in range(steps):
        if bool((size.sqrt() <= 1e-12 * goal.norm(dim=1, keepdim=True)).all()):
            break
        moved = (along @ h) * keep
        step = size / (along * moved).sum(1, keepdim=True).clamp(min=floor)
        w, left = w + step * along, left - step * moved
        now = left.square().sum(1, keepdim=True)
        along, size = left + now / size.clamp(min=floor) * along, now
    return w
