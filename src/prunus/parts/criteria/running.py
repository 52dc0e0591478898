"""Criteria from what was gathered over the training steps."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import Movement, RunningTaylor, RunningTaylorGate, SensitivityBound
from prunus.parts.evidence.running import SensitivityMean, TickSensitivity


def share(part: Criterion, *names: str) -> None:
    """Refuse factors of moving averages outside [0, 1)."""
    for name in names:
        if not 0.0 <= getattr(part, name) < 1.0:
            raise SpecError(f"{type(part).__name__}({name}={getattr(part, name)}) is the share of the past, in [0, 1)")


@dataclass(frozen=True)
class MovementScore(Criterion):
    """-sum over steps of w dL/dw: weights that training pulls away from zero stay, whatever their size (movement
    pruning: Sanh, Wolf & Rush 2020, arXiv:2005.07683).

    Shapes: `[*units, k] -> [*units, k]`. Units: loss, up to the learning rate of the scores; the paper ranks within a
    weight. Cost: a product per step. Without training steps: -w dL/dw summed over the calibration batches.
    """

    train_mode: bool = False

    def __call__(self, s: Movement) -> Float[Tensor, "*units k"]:
        return s


@dataclass(frozen=True)
class ConfidenceBound(Criterion):
    """I U: the moving average of |w dL/dw| times that of its distance from it; what is uncertain stays (PLATON: Zhang
    et al. 2022, arXiv:2206.12562).

    Shapes: `[*units, k, 2] -> [*units, k]`. Units: squared loss; comparable across the network. Cost: a few products
    per step, two numbers per weight. Differs: the official code first averages |w dL/dw| over the 10 steps between
    prunings, and takes gradients before, weights after the optimizer's step.
    """

    beta1: float = 0.85
    beta2: float = 0.95
    train_mode: bool = False

    def __post_init__(self) -> None:
        share(self, "beta1", "beta2")

    def __call__(self, s: SensitivityBound) -> Float[Tensor, "*units k"]:
        return s[..., 0] * s[..., 1]


@dataclass(frozen=True)
class SmoothedSensitivity(Criterion):
    """The moving average of |w dL/dw| over the training steps (LoSparse: Li et al. 2023, ICML, arXiv:2306.11222;
    PLATON's without its uncertainty: Zhang et al. 2022, arXiv:2206.12562).

    Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable across the network. Cost: a product per step, a number
    per weight. Differs: the official code first averages |w dL/dw| over the 10 steps between prunings, and takes
    gradients before, weights after the optimizer's step.
    """

    beta: float = 0.85
    train_mode: bool = False

    def __post_init__(self) -> None:
        share(self, "beta")

    def __call__(self, s: SensitivityMean) -> Float[Tensor, "*units k"]:
        return s


@dataclass(frozen=True)
class MomentumTaylor(Criterion):
    """The moving average over training batches of (sum w dL/dw)^2 over the unit's weights (Taylor-FO: Molchanov et al.
    2019, arXiv:1906.10771).

    Shapes: `[*units, 1] -> [*units, 1]`. Units: squared loss; comparable across the network. Cost: a product per step.
    Differs: the official code averages over the batches between prunings first and takes the moving average of these.
    """

    momentum: float = 0.9
    train_mode: bool = False

    def __post_init__(self) -> None:
        share(self, "momentum")

    def __call__(self, s: RunningTaylor) -> Float[Tensor, "*units 1"]:
        return s


@dataclass(frozen=True)
class MomentumTaylorGate(Criterion):
    """The same at a gate behind the normalization (Taylor-FO-BN): (gamma dL/dgamma + beta dL/dbeta)^2.

    Undefined on groups without a normalization. Shapes, units and cost as `MomentumTaylor`.
    """

    momentum: float = 0.9
    train_mode: bool = False

    def __post_init__(self) -> None:
        share(self, "momentum")

    def __call__(self, s: RunningTaylorGate) -> Float[Tensor, "*units 1"]:
        return s


@dataclass(frozen=True)
class SummedSensitivity(Criterion):
    """The sum of |gamma dL/dgamma| over the steps of a tick, the last share `tick` of those before an event: how much
    the loss hangs on the gate of a normalized channel (Gate decorator: You et al. 2019, NeurIPS, arXiv:1909.08174).

    Give `Ticking` the same share. Without training, the sum over the calibration batches. With `sum`, coupled
    normalizations add up, as in its group pruning. Shapes: `[*units, k] -> [*units, k]`. Units: loss; comparable across
    the network. Undefined on groups without a normalization. Cost: a product per gate and step. Differs: the code can
    take off a share of the operations, and does not by default.
    """

    tick: float = 0.1
    train_mode: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.tick <= 1.0:
            raise SpecError(f"SummedSensitivity(tick={self.tick}) is a share of the steps between events, in (0, 1]")

    def __call__(self, s: TickSensitivity) -> Float[Tensor, "*units k"]:
        return s
