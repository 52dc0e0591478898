"""Penalties that are priors: what variational inference asks of the means."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import LearningRate, PriorPrecision, Weight
from prunus.parts.evidence.fisher import Kind
from prunus.parts.evidence.priors import Level


@dataclass(frozen=True)
class GaussianPrior(Penalty):
    """strength / (2 prior^2) ||w||^2: the means' part of the divergence of a Gaussian posterior from N(0, prior^2); the
    variances' part is the gate's (`WeightPosterior`).

    strength is 1 / N for N training examples and a loss that is their mean. Shapes: w `[*units, k]`. Cost: one square
    per weight.
    """

    prior: float = 0.1
    strength: float = 1e-4

    def __post_init__(self) -> None:
        if not (self.prior > 0 and self.strength >= 0):
            raise SpecError(f"{self}: prior > 0 and strength >= 0")

    def __call__(self, w: Weight) -> Float[Tensor, ""]:
        return self.strength / 2 * (w / self.prior).square().sum()


@dataclass(frozen=True)
class PriorDecay(Penalty):
    """1 / (2 N) sum delta w^2, delta the precisions of Gaussian priors that are fitted to the evidence again and again
    while the network is trained (SpaM: Dhahri et al. 2024, NeurIPS, arXiv:2402.15978, with a diagonal Laplace
    approximation).

    Weights that the data do not ask for get ever stiffer priors and go to zero: `level` says whether a layer, a row
    of its weight or a weight has one of its own. delta / N counts as no more than 1 over the learning rate, at which a
    step of plain descent takes a weight to zero. Fields: see `PriorPrecision`. Shapes: w `[*units, k]`. Cost: a square
    per weight and step; every `every` steps a backward per output (or probe) and calibration batch. Differs: the paper
    makes a few steps of Adam on log delta where this iterates to the stationary point; there is no burn-in, and biases
    and normalizations have no prior.
    """

    level: Level = "weight"
    every: int = 100
    rounds: int = 20
    examples: int = 0
    fisher: Kind = "gauss_newton"
    probes: int = 0
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.level not in get_args(Level) or not (self.every >= 1 and self.rounds >= 1 and self.examples >= 0):
            raise SpecError(
                f"{self}: level is one of {get_args(Level)}; every and rounds at least 1, examples at least 0"
            )

    def __call__(self, w: Weight, prior: PriorPrecision, rate: LearningRate) -> Float[Tensor, ""]:
        stiff = prior[..., 1].clamp(max=1 / max(float(rate), 1e-12))
        return 0.5 * (stiff.to(w.dtype) * w.square()).sum()
