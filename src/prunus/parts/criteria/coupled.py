"""Criteria for units that lie in several weights at once."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence.members import MemberTaylor

Order = Literal["vector", "first", "second", "mixed"]
Over = Literal["sum", "prod", "max", "last"]


@dataclass(frozen=True)
class GroupTaylor(Criterion):
    """The importance of a coupled structure from those of its weights (LLM-Pruner: Ma et al. 2023, arXiv:2305.11627,
    section 3.2).

    Attributes: `order`: `vector` |sum w g| of a weight's slice; `first` sum |w g| (the paper's element-wise, first
    order); `second` sum w^2 h; `mixed` sum |w g - w^2 h / 2| (with both), h the diagonal of the empirical Fisher
    matrix. `over`: the sum, product or largest of the slices' importances, or that of the `last` weight alone, the one
    that is read last. Shapes: `[*units, members] -> [*units]`. Units: loss; comparable within a layer. Cost: one
    forward and backward per batch. Differs: h is the mean over batches of squared gradients, so batches are to be
    single samples where it matters.
    """

    order: Order = "first"
    over: Over = "sum"

    def __post_init__(self) -> None:
        if self.order not in get_args(Order) or self.over not in get_args(Over):
            raise SpecError(f"{self}: order is one of {get_args(Order)}, over one of {get_args(Over)}")

    def __call__(self, m: MemberTaylor) -> Float[Tensor, "*units"]:
        if self.over == "last":
            return m[..., -1]
        worth: Tensor = m.sum(-1) if self.over == "sum" else m.prod(-1) if self.over == "prod" else m.amax(-1)
        return worth
