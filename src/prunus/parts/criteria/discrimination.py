"""Criteria that select for the classes to be told apart."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence.discrimination import AdditionOrder


@dataclass(frozen=True)
class DiscriminativeSelection(Criterion):
    """How early the unit is added when the next layer is built up from nothing by the largest ||dL/dw_u||_F,
    L = ||y - y_dense||^2 / size + weight * loss (DCP: Zhuang et al. 2018, arXiv:1810.11809, algorithm 2).

    Shapes: `[*units, 1] -> [*units, 1]`. Units: ranks, the first one highest; compare within a layer. Cost: (1 + refit)
    forwards and backwards over the batches for every unit. Undefined where nothing visible reads a group.
    Attributes: `refit` steps of gradient descent at `rate` on what was added, after each addition.
    Differs: the loss is the task's own at the end of the network; the paper also puts classifiers of their own behind
    intermediate layers, fine-tunes with them, and lets each layer's selection go by the next one of these. The norm is
    the paper's; the official code sums the norms of kernels.
    """

    weight: float = 1.0
    refit: int = 1
    rate: float = 0.01
    train_mode: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0 or self.refit < 0 or not self.rate > 0:
            raise SpecError(
                f"DiscriminativeSelection(weight={self.weight}, refit={self.refit}, rate={self.rate}): "
                f"weight and refit are not negative, rate is above 0"
            )

    def __call__(self, order: AdditionOrder) -> Float[Tensor, "*units 1"]:
        return order
