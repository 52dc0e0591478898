"""What a weight is worth to one domain, without forgetting the rest."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import Grad, Weight
from prunus.parts.evidence.fisher import FisherDiagonal, GeneralFisher, Kind


@dataclass(frozen=True)
class DualImportance(Criterion):
    """|g' w - 1/2 F' w^2|: what the loss would change without w, of the domain's loss plus strength x sum of
    G (w_1 - w)^2, w_1 the weights after one step of gradient descent on the domain (D-Pruner: Zhang et al. 2024,
    arXiv:2405.06275, sections 3.2 and 3.3).

    G = 1/2 F_general w^2 is what general text would lose without w. With w_1 - w = -step g the added term is
    strength step^2 G g^2, and its gradient 2 strength step^2 G g F, the Fisher diagonal F of the domain in place of the
    Hessian; so g' = g r and F' = F r^2 with r = 1 + 2 strength step^2 G F.

    Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable across the network. Cost: one backward per batch of
    `Task.calib` (the domain) for the gradient and one for F, and one per batch of `Task.general`. Fails: `SpecError`
    without `Task.general`. Differs: the paper's code was never published; that G is the diagonal second-order term is
    this reading of its "error upon removal", and how large strength and step are hangs on the scale of the loss, so
    `strength` has to be tried.

    Attributes:
        strength: of the regularization (the paper's lambda).
        step: the learning rate of the one step (its alpha).
        fisher: see `DiagonalFisher`.
    """

    strength: float = 1.0
    step: float = 1.0
    fisher: Kind = "empirical"
    train_mode: bool = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.step > 0):
            raise SpecError(f"{self}: strength at least 0, step above 0")

    def __call__(self, w: Weight, g: Grad, f: FisherDiagonal, general: GeneralFisher) -> Float[Tensor, "*units k"]:
        r = 1 + self.strength * self.step**2 * general * w.square() * f
        return (g * r * w - 0.5 * f * (r * w).square()).abs()
