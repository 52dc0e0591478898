"""Gates that are drawn to zero or one by a constraint, met with multipliers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.core.part import Thetas
from prunus.parts.evidence import Weight


@dataclass(frozen=True)
class BoxBinary(Gate):
    """Factors v that end up 0 or 1, with the share `density` of each group at 1, since {0, 1} is where the box [0, 1]
    meets the sphere ||v - 1/2||^2 = n / 4 (factorized convolutional filters: Li et al. 2019, CVPR; lp-box ADMM: Wu &
    Ghanem 2019, arXiv:1604.07666).

    z1 is the projection of v + y1 / rho onto the box with the sum density * n, z2 that of v + y2 / rho onto the
    sphere; v follows (1 - alpha) dL/dv + alpha (y1 + y2 + rho (2 v - z1 - z2)); then y += rho (v - z), and rho grows by
    `growth` to at most `limit`. Weights are trained along. Shapes: theta `[*units, 5]`: v, y1, y2, z1, z2; v starts
    from 1, as z. Units: factors, comparable within a group. Cost: one sort of each group per step. Differs: factors act
    where a unit is read, not on the filter before its normalization; z is projected after each step, not before it, so
    that at the first it is 1; their rate is constant, where the official code divides it by ten twice.
    """

    alpha: float = 0.99
    lr: float = 0.1
    rho: float = 0.01
    growth: float = 1.01
    limit: float = 6.0

    def __post_init__(self) -> None:
        if not (0 <= self.alpha < 1 and self.lr > 0 and 0 < self.rho <= self.limit and self.growth >= 1):
            raise SpecError(f"{self}: 0 <= alpha < 1, lr > 0, 0 < rho <= limit, growth >= 1")

    def __call__(self, w: Weight) -> Float[Tensor, "*units 5"]:
        one, zero = torch.ones_like(w[..., 0]), torch.zeros_like(w[..., 0])
        return torch.stack([one, zero, zero, one, one], -1)

    def value(self, theta: Float[Tensor, "*units 5"], moment: Moment) -> Float[Tensor, "*units"]:
        return theta[..., 0]

    def worth(self, theta: Float[Tensor, "*units 5"]) -> Float[Tensor, "*units"]:
        return theta[..., 0]

    def duals(self, groups: int) -> tuple[float, ...]:
        return (self.rho,)

    def penalty(self, thetas: Thetas, moment: Moment) -> Float[Tensor, ""]:
        assert moment.duals is not None
        pulls = [pull(theta, float(moment.duals[0])) for theta in thetas.values()]
        return self.alpha / (1 - self.alpha) * torch.stack(pulls).sum()

    def confined(self, thetas: Thetas, moment: Moment) -> Thetas:
        assert moment.duals is not None
        rho = moment.duals[0], self.ascended(moment.duals, thetas, moment)[0]
        return {n: turned(t, float(rho[0]), float(rho[1]), moment.density) for n, t in thetas.items()}

    def ascended(self, duals: Float[Tensor, "n"], thetas: Thetas, moment: Moment) -> Float[Tensor, "n"]:
        return (duals * self.growth).clamp(max=self.limit)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr * (1 - self.alpha))


def pull(theta: Float[Tensor, "*units 5"], rho: float) -> Float[Tensor, ""]:
    """The augmented terms of the constraint: y1 v + y2 v + rho / 2 (||v - z1||^2 + ||v - z2||^2)."""
    v, (y1, y2, z1, z2) = theta[..., 0], theta.detach()[..., 1:].unbind(-1)
    return ((y1 + y2) * v).sum() + rho / 2 * ((v - z1).square().sum() + (v - z2).square().sum())


def turned(theta: Float[Tensor, "*units 5"], rho: float, following: float, share: float) -> Float[Tensor, "*units 5"]:
    """Multipliers and projections after a step of v, for a step with the strength `following`."""
    v, y1, y2, z1, z2 = theta.unbind(-1)
    y1, y2 = y1 + rho * (v - z1), y2 + rho * (v - z2)
    z1, z2 = capped(v + y1 / following, share * v.numel()), on_sphere(v + y2 / following)
    return torch.stack([v, y1, y2, z1, z2], -1)


def capped(point: Float[Tensor, "*units"], total: float) -> Float[Tensor, "*units"]:
    """The nearest point of the box [0, 1] whose entries sum to `total`: clip(point - t) for the one t that fits.

    The sum of clip(point - t) falls along t, linearly between the points at which an entry enters or leaves the box.
    """
    a = point.reshape(-1).double().sort().values
    breaks = torch.cat([a - 1, a]).sort().values
    sums = above(a, breaks) - above(a - 1, breaks)
    after = int((sums >= total).sum().clamp(1, len(breaks) - 1))
    (left, right), (high, low) = breaks[after - 1 : after + 1], sums[after - 1 : after + 1]
    steep = high - low
    shift = left + (right - left) * ((high - total) / steep).clamp(0, 1) if steep > 0 else left
    near: Tensor = (point.double() - shift).clamp(0, 1).to(point.dtype)
    return near


def above(a: Float[Tensor, "n"], levels: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """`[m]`: how far ascending numbers lie above each level, in all."""
    first = torch.searchsorted(a, levels, right=True)
    rest = torch.cat([a.flip(0).cumsum(0).flip(0), a.new_zeros(1)])
    return rest[first] - (len(a) - first) * levels


def on_sphere(point: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
    """The nearest point of the sphere around 1/2 that all corners of the box lie on; the centre goes to all ones."""
    away = point - 0.5
    size = away.square().sum().sqrt()
    away = away if size > 0 else torch.ones_like(away)
    near: Tensor = 0.5 + away * (0.5 * point.numel() ** 0.5 / away.square().sum().sqrt())
    return near
