"""Gates that are trained by losses alone: estimators that do not differentiate the network."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Noise, Weight
from prunus.parts.gate.probable import Probable, about

Loss = Callable[[Mapping[str, Tensor]], float]


@dataclass(frozen=True)
class Arm(Probable):
    """z = 1[u < sigmoid(slope theta)], with the augment-reinforce-merge gradient (f(1[u > sigmoid(-slope theta)]) -
    f(z)) (u - 1/2) slope and the penalty strength * sum sigmoid(slope theta) (L0-ARM: Li & Ji 2019, arXiv:1904.04961;
    ARM: Yin & Zhou 2019, arXiv:1807.11143, eq. 4).

    Unbiased, with no relaxation: the network always computes with zeros and ones. f is the loss of a calibration batch.
    `single` takes f(z) (1 - 2 u) slope instead, from one loss (AR). Starts from log((1 - drop) / drop) / slope, give or
    take a hundredth of 1 / slope. Weights are trained along by the user's loop, under the same z. What stays is
    multiplied by its probability, and a gate is open from 1/2 on. Adam.

    Shapes: theta `[*units]`. Units: log-odds / slope, comparable everywhere. Cost: two forward passes per step (AR:
    one), besides the loop's own. Differs: the paper takes one of them from the training pass; its hard sigmoid and its
    average over the parameters are left out; strength is its lambda / N.
    """

    slope: float = 7.0
    single: bool = False
    samples: ClassVar[int] = 1
    evaluates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.slope > 0:
            raise SpecError(f"{self}: slope > 0")

    def __call__(self, w: Weight, u: Noise) -> Float[Tensor, "*units"]:
        return about(math.log((1 - self.drop) / self.drop), u, w) / self.slope

    def chance(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return (self.slope * theta).sigmoid()

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        chance = self.chance(theta.detach())
        return chance if moment.noise is None else (moment.noise < chance).to(chance.dtype)

    def estimated(
        self, loss: Loss, thetas: Mapping[str, Float[Tensor, "..."]], moments: Mapping[str, Moment]
    ) -> tuple[Mapping[str, Float[Tensor, "..."]], None]:
        u = {n: noise for n, m in moments.items() if (noise := m.noise) is not None}
        drawn = loss({n: self.value(t, moments[n]) for n, t in thetas.items()})
        if self.single:
            return {n: self.slope * drawn * (1 - 2 * u[n]) for n in thetas}, None
        other = loss({n: (u[n] > self.chance(-t)).to(t.dtype) for n, t in thetas.items()})
        return {n: self.slope * (other - drawn) * (u[n] - 0.5) for n in thetas}, None

    def open(self, theta: Float[Tensor, "*units"], moment: Moment) -> Bool[Tensor, "*units"]:
        return theta > 0


@dataclass(frozen=True)
class PolicyGradient(Gate):
    """z = 1[u < theta], theta the probabilities themselves, with the gradient (f(z) - d) (z / theta - (1 - z) / (1 -
    theta)), averaged over `draws` of z, and theta put back onto {sum theta <= density n, 0 <= theta <= 1} after every
    step (Gao et al. 2025, ACL, arXiv:2406.10576).

    d is a moving average of the losses of earlier steps, d <- (1 - 1 / window) d + mean f / window, which takes
    variance and no bias. f is the loss of a calibration batch, from forward passes alone; all parameters stay as they
    are. The projection is the Euclidean one, theta minus a number, clipped. SGD. Starts from `start` everywhere.

    Shapes: theta `[*units]`. Units: probabilities, comparable everywhere. Cost: `draws` forward passes per step; the
    backward pass of the loop around it is not used. Differs: d starts from the first losses, so that first steps are no
    longer than others; theta cannot start from a criterion, as the paper's may.
    """

    start: float = 0.5
    window: int = 5
    draws: int = 2
    lr: float = 1e-2
    freezes: ClassVar[bool] = True
    evaluates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 < self.start <= 1 and min(self.window, self.draws) >= 1 and self.lr > 0):
            raise SpecError(f"{self}: 0 < start <= 1, window and draws at least 1, lr > 0")

    @property
    def samples(self) -> int:  # type: ignore[override]
        """As many draws of noise as of masks."""
        return self.draws

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.full_like(w[..., 0], self.start)

    def value(self, theta: Float[Tensor, "*units"], moment: Moment) -> Float[Tensor, "*units"]:
        return torch.ones_like(theta) if moment.noise is None else nth(moment, 0, theta.detach())

    def duals(self, groups: int) -> tuple[float, ...]:
        return 0.0, 0.0

    def estimated(
        self, loss: Loss, thetas: Mapping[str, Float[Tensor, "..."]], moments: Mapping[str, Moment]
    ) -> tuple[Mapping[str, Float[Tensor, "..."]], Float[Tensor, "n"]]:
        drawn = [{n: nth(moments[n], i, t) for n, t in thetas.items()} for i in range(self.draws)]
        base, duals = baseline(next(iter(moments.values())).duals, losses := [loss(z) for z in drawn], self.window)
        return policy([f - base for f in losses], drawn, thetas), duals

    def confined(
        self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment
    ) -> Mapping[str, Float[Tensor, "..."]]:
        return together(thetas, moment.density)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr)


def nth(moment: Moment, i: int, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
    """The i-th draw of masks, 1 with the probability theta."""
    assert moment.noise is not None
    return (moment.noise.reshape(-1, *theta.shape)[i] < theta).to(theta.dtype)


def baseline(duals: Tensor | None, losses: Sequence[float], window: int) -> tuple[float, Float[Tensor, "2"]]:
    """The average of earlier losses (of these, where there are none), and what is carried on: the next, and a count."""
    assert duals is not None
    mean, seen = sum(losses) / len(losses), float(duals[1])
    base = float(duals[0]) if seen else mean
    return base, torch.tensor([(1 - 1 / window) * base + mean / window, seen + 1], dtype=duals.dtype)


def policy(
    gains: Sequence[float], drawn: Sequence[Mapping[str, Tensor]], thetas: Mapping[str, Float[Tensor, "..."]]
) -> dict[str, Float[Tensor, "..."]]:
    """The mean over draws z of gain times the gradient of log P(z)."""
    found = {n: torch.zeros_like(t) for n, t in thetas.items()}
    for gain, z in zip(gains, drawn, strict=True):
        for n, t in thetas.items():
            found[n] += gain / len(gains) * torch.where(z[n] > 0, 1 / t, -1 / (1 - t))
    return found


def together(thetas: Mapping[str, Float[Tensor, "..."]], density: float) -> dict[str, Float[Tensor, "..."]]:
    """`onto` of all groups at once, for a share of all units."""
    flat = torch.cat([t.double().flatten() for t in thetas.values()])
    pieces = onto(flat, density * flat.numel()).split([t.numel() for t in thetas.values()])
    return {n: p.reshape(t.shape).to(t.dtype) for (n, t), p in zip(thetas.items(), pieces, strict=True)}


def onto(z: Float[Tensor, "n"], total: float) -> Float[Tensor, "n"]:
    """The point of {sum x <= total, 0 <= x <= 1} nearest to z: clip(z - v) with the smallest v >= 0 that fits."""
    if float(z.clamp(0, 1).sum()) <= total:
        return z.clamp(0, 1)
    # The sum falls piecewise linearly with v, and bends where an entry reaches 0 or 1.
    bends = torch.cat([z, z - 1, z.new_zeros(1)]).clamp(min=0).unique()
    low, high = 0, len(bends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if float((z - bends[middle]).clamp(0, 1).sum()) > total:
            low = middle
        else:
            high = middle
    above, below = ((z - bends[i]).clamp(0, 1).sum() for i in (low, high))
    v: Tensor = bends[low] + (above - total) / (above - below) * (bends[high] - bends[low])
    return (z - v).clamp(0, 1)
