"""What a layer's output loses without a weight or unit that it reads: refitted (optimal brain surgeon) or not."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import InputNorm, InverseCurvature, ReaderWeight

HALF = (torch.float16, torch.bfloat16)


def widened(w: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Weights in the type that scores are worked out in: float64, or float32 where they are stored in half precision
    (of a block of a large language model even the scores of one layer are too much in float64).
    """
    return w.float() if w.dtype in HALF else w.double()


def narrowed(x: Float[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Numbers in another type, repeated where they were: a vector spread over a matrix stays one."""
    if x.dtype == dtype:
        return x
    once = x[tuple(slice(0, 1) if step == 0 else slice(None) for step in x.stride())]
    return once.to(dtype).expand(x.shape)


@dataclass(frozen=True)
class ObsSaliency(Criterion):
    """w^2 / [H^-1]_jj with H = E[x x^T]: the least rise of the layer's mean squared output error when w is removed and
    the others are adjusted (Hassibi & Stork 1992; layer by layer: Dong et al. 2017, arXiv:1705.07565; Frantar &
    Alistarh 2022, arXiv:2208.11580, eq. 3).

    Of a unit: summed over the weights that read it. Shapes: `[*units, k] -> [*units, k]`. Units: squared output of the
    reading layer; comparable within a layer. Cost: a forward per batch and the inverse of an `[in, in]` matrix per
    layer. Fails: undefined where no visible layer reads a unit. Differs: without the factor one half; `damp` is added
    relative to the mean of the diagonal (Frantar & Alistarh 2023, arXiv:2301.00774, 0.01). Precision: `widened`.
    """

    damp: float = 0.01

    def __post_init__(self) -> None:
        if not self.damp >= 0:
            raise SpecError(f"ObsSaliency(damp={self.damp}) must not be negative")

    # The curvature first: what it saw on the way is all that `ReaderWeight` needs.
    def __call__(self, h: InverseCurvature, w: ReaderWeight) -> Float[Tensor, "*units k"]:
        worth = widened(w.abs())
        return worth.square_().div_(narrowed(h, worth.dtype))


@dataclass(frozen=True)
class InputWeighted(Criterion):
    """|w_ij| ||x_j||_2 (Wanda: Sun et al. 2024, arXiv:2306.11695, eq. 1).

    Shapes: `[*units, k] -> [*units, k]`. Units: output of the reading layer; compare within a row (`Uniform(within=
    "row")`), as the paper does. Cost: a forward per batch. Fails: undefined where no visible layer reads a unit.
    Differs: the root mean square instead of the norm, which changes no rank within a layer. Precision: `widened`.
    """

    def __call__(self, w: ReaderWeight, x: InputNorm) -> Float[Tensor, "*units k"]:
        worth = widened(w.abs())
        return worth.mul_(narrowed(x, worth.dtype))


@dataclass(frozen=True)
class RelativeImportance(Criterion):
    """(|w_ij| / sum_i |w_ij| + |w_ij| / sum_j |w_ij|) ||x_j||_2^power (RIA: Zhang et al. 2024, Plug-and-Play, ICLR).

    Shapes: `[out, in, 1] -> [out, in, 1]`. Units: none; compare within a row. Cost: a forward per batch. Fails:
    `SpecError` for anything but single weights. The paper's channel permutation for N:M patterns is an allocation
    (`Permuted`) or a preparation (`Arranged`).
    """

    power: float = 0.5

    def __call__(self, w: ReaderWeight, x: InputNorm) -> Float[Tensor, "out in 1"]:
        if w.ndim != 3:
            raise SpecError("RelativeImportance compares the single weights of a matrix: use it with Element()")
        size = w.double().abs()
        least = torch.finfo(torch.float64).tiny
        share = size / size.sum(0, keepdim=True).clamp(min=least) + size / size.sum(1, keepdim=True).clamp(min=least)
        return share * x**self.power
