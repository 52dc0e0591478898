"""Gates that are random variables: Gaussian factors and Gaussian weights, trained by variational inference.

A Gaussian gate's theta is `[*units, 2]`: the mean mu and the logarithm of the variance sigma^2. One number is drawn per
unit and step, by reparametrization; samples of a batch share it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


def normal(noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Standard normal numbers from uniform ones in [0, 1), by the inverse of the distribution function; beyond five
    standard deviations they are cut off.
    """
    found: Tensor = math.sqrt(2) * torch.erfinv((2 * noise - 1).clamp(-1 + 1e-6, 1 - 1e-6))
    return found


def drawn(theta: Float[Tensor, "*units 2"], moment: Moment) -> Float[Tensor, "*units"]:
    """mu + sigma epsilon; mu where nothing is drawn any more."""
    mean = theta[..., 0]
    return mean if moment.noise is None else mean + (theta[..., 1] / 2).exp() * normal(moment.noise[..., 0])


def positive(part: Gate, *names: str) -> None:
    """Refuse fields that must be above zero."""
    for name in names:
        if not getattr(part, name) > 0:
            raise SpecError(f"{type(part).__name__}({name}={getattr(part, name)}) must be above 0")


@dataclass(frozen=True)
class GaussianScale(Gate):
    """A factor q = N(mu, sigma^2) on each channel, with strength * KL(q || N(0, prior^2)) = strength / 2 * sum
    ((mu^2 + sigma^2) / prior^2 - 1 - log(sigma^2 / prior^2)) in the loss (variational channel pruning: Zhao et al.
    2019, CVPR, eqs. 5 to 12).

    A channel may go when its posterior is concentrated at zero, |mu| < tau and sigma < spread (`open`); its worth is
    max(|mu| / tau, sigma / spread), so that this is where it falls below 1. The prior is narrower than `spread`:
    channels that the loss does not ask for come to it. Starts from mu = 1 and sigma = prior / 10. Adam.

    Shapes: theta `[*units, 2]`. Units: multiples of the thresholds, comparable everywhere. Cost: one random number per
    unit and step. Differs: the factor acts where a channel is read, after normalization and nonlinearity; the paper's
    stands for the normalization's scale (and multiplies its shift). `strength` is 1 / N for N training examples in the
    evidence bound of a mean loss. The thresholds are ours.
    """

    prior: float = 0.01
    tau: float = 0.02
    spread: float = 0.02
    strength: float = 2e-5
    lr: float = 1e-3
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        positive(self, "prior", "tau", "spread", "lr")
        if not self.strength >= 0:
            raise SpecError(f"GaussianScale(strength={self.strength}) must not be negative")

    def __call__(self, w: Weight) -> Float[Tensor, "*units 2"]:
        mean = torch.ones_like(w[..., 0])
        return torch.stack([mean, mean * 2 * math.log(self.prior / 10)], -1)

    def value(self, theta: Float[Tensor, "*units 2"], moment: Moment) -> Float[Tensor, "*units"]:
        return drawn(theta, moment)

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        theta = torch.cat([t.flatten(0, -2) for t in thetas.values()])
        ratio = theta[:, 1] - 2 * math.log(self.prior)
        return self.strength / 2 * ((theta[:, 0] / self.prior).square() + ratio.exp() - 1 - ratio).sum()

    def worth(self, theta: Float[Tensor, "*units 2"]) -> Float[Tensor, "*units"]:
        return torch.maximum(theta[..., 0].abs() / self.tau, (theta[..., 1] / 2).exp() / self.spread)

    def open(self, theta: Float[Tensor, "*units 2"], moment: Moment) -> Bool[Tensor, "*units"]:
        return self.worth(theta) >= 1

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


@dataclass(frozen=True)
class Bottleneck(Gate):
    """A factor z = mu + sigma epsilon on each unit, with strength / 2 * sum log(1 + mu^2 / sigma^2) in the loss, the
    bound on what it lets through (variational information bottleneck: Dai et al. 2018, ICML, arXiv:1802.10399, eq. 10).

    The least KL divergence from a zero-mean Gaussian whose variance is free. Worth: log(mu^2 / sigma^2), the signal to
    noise; by themselves gates keep what is above 0 (`open`), as the official code does. Starts from mu = 1 and sigma^2
    = e^-9. Adam.

    Shapes: theta `[*units, 2]`. Units: log ratios, comparable everywhere. Cost: one random number per unit and step.
    Differs: one draw per step instead of one per sample; the start is not jittered; the official code multiplies a
    convolution's term by its number of positions and by a factor of its own for every layer.
    """

    strength: float = 1e-5
    lr: float = 1e-3
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        positive(self, "lr")
        if not self.strength >= 0:
            raise SpecError(f"{type(self).__name__}(strength={self.strength}) must not be negative")

    def __call__(self, w: Weight) -> Float[Tensor, "*units 2"]:
        mean = torch.ones_like(w[..., 0])
        return torch.stack([mean, -9 * mean], -1)

    def value(self, theta: Float[Tensor, "*units 2"], moment: Moment) -> Float[Tensor, "*units"]:
        return drawn(theta, moment)

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        bounds = [torch.log1p(t[..., 0].square() * (-t[..., 1]).exp()).sum() for t in thetas.values()]
        return self.strength / 2 * torch.stack(bounds).sum()

    def worth(self, theta: Float[Tensor, "*units 2"]) -> Float[Tensor, "*units"]:
        return (theta[..., 0].square() + 1e-8).log() - theta[..., 1]

    def open(self, theta: Float[Tensor, "*units 2"], moment: Moment) -> Bool[Tensor, "*units"]:
        return self.worth(theta) > 0

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


@dataclass(frozen=True)
class ConstrainedBottleneck(Bottleneck):
    """`Bottleneck`, with a_1 g + a_2 g^2 in the loss, g the share of the weights that units are expected to keep, less
    the density that is asked for (after VTrans: Dutta, Gupta & Agarwal 2024, arXiv:2406.05276).

    A unit is expected to keep mu^2 / (mu^2 + sigma^2) of what it owns. The multipliers start at 0 and rise by `ascent`
    times g and g^2 after every step. Shapes, units, cost: those of `Bottleneck`. Differs: the expectation is ours, a
    smooth stand-in for the count of units above the threshold, and so is that the constraint is an equation.
    """

    ascent: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "ascent")

    def excess(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        """g: the share of the weights that is expected to stay, less the share that should."""
        kept, every = [], 0.0
        for name, theta in thetas.items():
            size, odds = moment.sizes.get(name, 1.0), 2 * theta[..., 0].abs().clamp(min=1e-8).log() - theta[..., 1]
            kept.append(size * odds.sigmoid().sum())
            every += size * odds.numel()
        return torch.stack(kept).sum() / every - moment.density

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        assert moment.duals is not None
        gap = self.excess(thetas, moment)
        first, second = moment.duals.tolist()
        total: Tensor = super().penalty(thetas, moment) + first * gap + second * gap.square()
        return total

    def duals(self, groups: int) -> tuple[float, ...]:
        return (0.0, 0.0)

    def ascended(
        self, duals: Float[Tensor, "n"], thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment
    ) -> Float[Tensor, "n"]:
        gap = self.excess(thetas, moment).to(duals)
        risen: Tensor = duals + self.ascent * torch.stack([gap, gap.square()])
        return risen


@dataclass(frozen=True)
class WeightPosterior(Gate):
    """Weights w + sigma epsilon: the parameters are the means of a Gaussian over each weight, whose variances are
    learned here, with strength / 2 * sum (sigma^2 / prior^2 - 1 - log(sigma^2 / prior^2)) in the loss (variational
    inference over weights: Graves 2011, NeurIPS; Blundell et al. 2015, ICML, arXiv:1505.05424).

    The means' part of the divergence from N(0, prior^2) is the penalty `GaussianPrior`, with the same prior and
    strength (1 / N for N training examples and a mean loss). Pruned weights are zero without noise; after the last
    event the network computes with the means. Starts from sigma = `start`. Worth: the logarithm of the precision,
    which criteria join with the mean (`ReducedEvidence`, `SignalToNoise`).

    Shapes: theta `[*units]`, the logarithm of the variance. Cost: one random number per weight and step. Fails:
    `SpecError` for units of several weights. Differs: one draw per step for all samples.
    """

    prior: float = 0.1
    strength: float = 1e-4
    start: float = 1e-3
    lr: float = 1e-2
    samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        positive(self, "prior", "start", "lr")
        if not self.strength >= 0:
            raise SpecError(f"WeightPosterior(strength={self.strength}) must not be negative")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        if w.shape[-1] != 1:
            raise SpecError("WeightPosterior is a distribution over single weights: take granularity=Element()")
        return torch.full_like(w[..., 0], 2 * math.log(self.start))

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        if moment.noise is None:
            return torch.zeros_like(theta)
        noise = (theta / 2).exp() * normal(moment.noise)
        return noise if moment.keep is None else noise * moment.keep

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return w + value

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        ratio = torch.cat([t.flatten() for t in thetas.values()]) - 2 * math.log(self.prior)
        return self.strength / 2 * (ratio.exp() - 1 - ratio).sum()

    def worth(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return -theta

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)
