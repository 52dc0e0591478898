"""Criteria from a posterior over the weights that is trained along: variances in a gate, or priors in a penalty."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import FisherDiagonal, GateValue, PriorPrecision, SampleCount, Weight
from prunus.parts.evidence.fisher import Kind
from prunus.parts.evidence.priors import Level


@dataclass(frozen=True)
class SignalToNoise(Criterion):
    """|mu| / sigma of a Gaussian posterior over each weight (Graves 2011, NeurIPS; Blundell et al. 2015, ICML,
    arXiv:1505.05424, section 5.1).

    The gate's worth must be the logarithm of the precision (`WeightPosterior`). Shapes: `[*units, 1] -> [*units, 1]`.
    Units: none; comparable across the network. Cost: none; the posterior was trained before.
    """

    def __call__(self, w: Weight, precision: GateValue) -> Float[Tensor, "*units 1"]:
        return w.abs() * (precision / 2).exp()


@dataclass(frozen=True)
class ReducedEvidence(Criterion):
    """-log of the integral of q(w) p'(w) / p(w): what the evidence loses when the prior p = N(0, prior^2) of a weight
    becomes p' = N(0, reduced^2), given its posterior q = N(mu, 1 / P) (Bayesian model reduction: Friston & Penny 2011;
    Beckers et al. 2022, arXiv:2210.09134).

    With P' = P + 1 / reduced^2 - 1 / prior^2 it is 1/2 P mu^2 (1 - P / P') - 1/2 log(P prior^2 / (P' reduced^2)); for
    reduced = 0, a weight that is certainly zero, 1/2 P mu^2 - 1/2 log(P prior^2). Below zero the evidence prefers the
    network without the weight. The gate's worth must be log P, trained with the same prior (`WeightPosterior`).

    Shapes: `[*units, 1] -> [*units, 1]`. Units: nats; comparable across the network. Cost: none; the posterior was
    trained before.
    """

    prior: float = 0.1
    reduced: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.reduced < self.prior:
            raise SpecError(f"{self}: 0 <= reduced < prior, standard deviations")

    def __call__(self, w: Weight, precision: GateValue) -> Float[Tensor, "*units 1"]:
        p, mean = precision.double().exp(), w.double()
        if not self.reduced:
            return 0.5 * (p * mean.square() - (p * self.prior**2).log())
        after = p + self.reduced**-2 - self.prior**-2
        ratio = p * self.prior**2 / (after * self.reduced**2)
        return 0.5 * (p * mean.square() * (1 - p / after) - torch.log(ratio))


@dataclass(frozen=True)
class LearnedPosteriorDamage(Criterion):
    """(N h + delta) w^2, the posterior precision of a weight times its square, with the precisions delta of the priors
    that the network was trained with (optimal posterior damage in SpaM: Dhahri et al. 2024, NeurIPS, arXiv:2402.15978).

    For recipes with the penalty `PriorDecay`, whose fields of the same names should be equal. h is the diagonal of
    the Gauss-Newton matrix at the weights as they are. Shapes: `[*units, k], [*units, k, 2] -> [*units, k]`. Units:
    nats; comparable across the network. Cost: a backward per output (or probe) and batch. Fails: as its evidence.
    """

    level: Level = "weight"
    rounds: int = 20
    examples: int = 0
    fisher: Kind = "gauss_newton"
    probes: int = 0

    def __call__(
        self, w: Weight, h: FisherDiagonal, count: SampleCount, prior: PriorPrecision
    ) -> Float[Tensor, "*units k"]:
        precision = h.double() * (self.examples or count.double()) + prior[..., 0]
        return precision * w.double().square()
