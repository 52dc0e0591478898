"""Wanda's score with the size of a gradient beside the size of the input."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import GradLength, InputLength, ReaderWeight, RegionalGrad


@dataclass(frozen=True)
class GradientBlended(Criterion):
    """|w_ij| (||x_j||_2 + alpha ||dL/dw_ij||_norm): gradients of the loss of the whole model, over samples
    (GBLM-Pruner: Das et al. 2023, arXiv:2311.04902).

    Shapes: `[*units, k] -> [*units, k]`. Units: none; compare within a row. Cost: a forward, and a forward and backward
    through the whole model, per batch; where blocks are gone through, the gradients of all weights are kept meanwhile.
    Fails: undefined where no visible layer reads a unit. Differs: a batch is a sample (one sequence each in the paper),
    and both lengths are taken per sample, so that alpha does not hang on how many there are: at norm 2 the paper's
    ranks. The official code divides the inputs by the number of samples and not the gradients: its alpha is the square
    root of that number times this one (11 for 128). The two norms of its tables are 1 and 2.
    """

    alpha: float = 100.0
    norm: float = 2.0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.norm < 1:
            raise SpecError(f"{self}: alpha is at least 0, the norm at least 1")

    def __call__(self, w: ReaderWeight, x: InputLength, g: GradLength) -> Float[Tensor, "*units k"]:
        return w.double().abs() * (x + self.alpha * g.double())


@dataclass(frozen=True)
class RegionallyBlended(Criterion):
    """|w_ij| (||x_j||_2 + alpha ||d||f(x)||_2 / dw_ij||): gradients of the norm of a block's own output f(x), root mean
    square over samples (Wanda++'s regional gradient score: Yang et al. 2025, arXiv:2503.04992, section 4).

    Shapes: `[*units, k] -> [*units, k]`. Units: none; compare within a row. Cost: a forward, and a forward and backward
    through the block, per batch. Fails: undefined where no visible layer reads a unit. Differs: a batch is a sample
    (one sequence each in the paper).
    """

    alpha: float = 100.0

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise SpecError(f"{self}: alpha is at least 0")

    def __call__(self, w: ReaderWeight, x: InputLength, g: RegionalGrad) -> Float[Tensor, "*units k"]:
        return w.double().abs() * (x + self.alpha * g.double())
