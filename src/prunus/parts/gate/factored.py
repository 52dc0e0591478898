"""Gates whose scores, and whose change of the weights, are products of few numbers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Noise, Weight


@dataclass(frozen=True)
class FactoredMovement(Gate):
    """The network computes with V = W + U T where the allocation keeps S = |V| + A B + R 1^T + 1 C^T, and with 0
    elsewhere; W stays as it is, U, T, A, B, R and C are trained, dL/dS straight through as dL/dV' V, V' what the
    network computes with (parameter-efficient sparse training: Li et al. 2022, IJCAI, arXiv:2205.11005, and its
    official code).

    So a matrix of `[out, in]` has (rank + score_rank + 1) (out + in) numbers to train, not two of its own size: scores
    of movement are nearly of low rank, and alike along rows and columns. U and A begin normal, T, B, R and C at zero,
    so that the first ranking is by magnitude. Adam without decay, at a rate that falls to zero in a straight line.
    Nothing else of the network is trained. At the end the weights are V' and the factors are gone.

    Shapes: theta `[out + in, score_rank + 1 + rank]`, rows of A, R and U and then columns of B, C and T. Units: those
    of the weights; the paper ranks within a weight. Cost: per step two products of factors to choose and two to compute
    with, and a selection; some matrices of the weight's size while it computes. Fails: `SpecError` for units of several
    weights. Differs: ranks are at most half of the inputs; stacked experts share B, C and T.
    """

    rank: int = 8
    score_rank: int = 8
    scale: float = 1.0
    low: float = 1.0
    lines: float = 1.0
    lr: float = 5e-5
    freezes: ClassVar[bool] = True
    selects: ClassVar[bool] = True
    sees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.rank >= 1 and self.score_rank >= 1 and min(self.scale, self.low, self.lines) >= 0 and self.lr > 0):
            raise SpecError(f"{self}: ranks of at least 1, scale, low and lines not negative, lr > 0")

    def __call__(self, w: Weight, u: Noise) -> Float[Tensor, "out_in factors"]:
        return drawn(w, u, self.score_rank, self.rank)

    def value(self, theta: Float[Tensor, "..."], moment: Moment) -> Float[Tensor, "out columns"]:
        assert moment.w is not None and moment.keep is not None
        score, moved = scored(self, theta, moment.w)
        return (moment.keep.to(score.dtype) + (score - score.detach())) * moved

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return value

    def worth_over(self, theta: Float[Tensor, "..."], w: Float[Tensor, "*units k"]) -> Float[Tensor, "*units"]:
        return scored(self, theta, w)[0]

    def rate(self, progress: float) -> float:
        return 1 - progress

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, eps=1e-6)


def scored(
    gate: FactoredMovement, theta: Float[Tensor, "..."], w: Float[Tensor, "out columns 1"]
) -> tuple[Float[Tensor, "out columns"], Float[Tensor, "out columns"]]:
    """S and V."""
    low, lines, change = products(theta, w.shape, gate.score_rank)
    moved = w.squeeze(-1).to(theta) + gate.scale * change
    return moved.abs() + gate.low * low + gate.lines * lines, moved


def drawn(w: Float[Tensor, "*units k"], u: Float[Tensor, "*units 1"], score_rank: int, rank: int) -> Tensor:
    """What the factors of `FactoredMovement` start from, given uniform numbers."""
    if w.shape[-1] != 1:
        raise SpecError("FactoredMovement trains the matrix of single weights: use Element, not larger units")
    out, columns = w.shape[:2]
    scores, rank = (min(r, columns // 2) for r in (score_rank, rank))
    normal = torch.special.ndtri(u[..., 0].double().clamp(1e-7, 1 - 1e-7)).to(w.dtype)
    theta = w.new_zeros(out + columns, scores + 1 + rank)
    theta[:out, :scores], theta[:out, scores + 1 :] = normal[:, :scores], normal[:, scores : scores + rank]
    return theta


def products(theta: Float[Tensor, "..."], shape: torch.Size, score_rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """A B, R 1^T + 1 C^T and U T of a weight of `shape`."""
    at = min(score_rank, shape[1] // 2)
    rows, columns = theta[: shape[0]], theta[shape[0] :].T
    lines = rows[:, at : at + 1] + columns[at]
    return rows[:, :at] @ columns[:at], lines, rows[:, at + 1 :] @ columns[at + 1 :]
