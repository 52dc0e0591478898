"""Gates with nothing to learn that say which weights compute, which learn, and how."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight
from prunus.parts.gate.straight import Reselected, Straight
from prunus.parts.gate.thresholds import single


class _Explored(torch.autograd.Function):
    """w where value is 1; backward the gradient where value is not 0, plus a pull to zero there."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, value: Tensor, strength: float) -> Tensor:
        ctx.save_for_backward(w, value)
        ctx.strength = strength
        return w * (value == 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        w, value = ctx.saved_tensors
        computes = (value == 1).to(w.dtype).expand_as(w)
        share = computes.mean().clamp(min=1 / w.numel())
        learns = (value > 0).to(w.dtype)
        pull = ctx.strength * w * (computes + (learns - computes) / share)
        return grads[0] * learns + pull, None, None


@dataclass(frozen=True)
class TopKast(Reselected):
    """The network computes with the units A that the allocation keeps; gradients go to a wider choice B of the share
    `extra` more, and to no other (Top-KAST: Jayakumar et al. 2020, NeurIPS, arXiv:2106.03517, section 2).

    Both are chosen anew every `every` steps. The penalty strength / 2 (||A||^2 + ||B - A||^2 / D), D the share that the
    layer computes with, draws what only learns harder, so that it has to earn its place. Shapes: those of `Straight`;
    the value is 1 in A, 1/2 in B - A, 0 elsewhere. Cost: two scorings and selections every `every` steps. Differs: what
    lies outside B gets no gradient, but the decay and the momentum of the user's optimizer go on there. A loss scaler
    divides the penalty's gradient by its scale.
    """

    every: int = 10
    extra: float = 0.3
    strength: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.extra <= 1 and self.strength >= 0 and self.decay == 0):
            raise SpecError(f"{self}: 0 <= extra <= 1, strength >= 0, and decay is part of strength here")

    def wider(self, density: float) -> float:
        return min(1.0, density + self.extra)

    def value(self, theta: Float[Tensor, "..."], moment: Moment) -> Float[Tensor, "*units"]:
        assert moment.keep is not None
        wide = moment.keep if moment.wide is None else moment.keep | moment.wide
        return (moment.keep.to(theta.dtype) + wide.to(theta.dtype)) / 2

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        out: Tensor = _Explored.apply(w, value, self.strength)  # type: ignore[no-untyped-call]
        return out


@dataclass(frozen=True)
class Dormant(Straight):
    """The network computes with the kept units; the others get no gradient and wait with the values that they had.

    Shapes: those of `Straight`. Cost: one product per use of a weight. Differs from zeroing: a unit that comes back
    begins where it stopped, but for the decay and the momentum of the user's optimizer.
    """

    decay: float = 0.0

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return w * value


@dataclass(frozen=True)
class PowerPropagation(Gate):
    """w = v |v|^(alpha - 1), v what is trained: gradients are larger where weights are, so that small ones stay small
    (powerpropagation: Schwarz et al. 2021, NeurIPS, arXiv:2110.00296, section 2).

    v starts from sign(w) |w|^(1 / alpha), so that the network computes what it did; after the last event the weights
    are w. Shapes: w of any. Cost: a power per use of a weight. Fails: a weight that is exactly zero gets no gradient
    and stays so (alpha > 1).
    """

    alpha: float = 2.0
    trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.alpha >= 1:
            raise SpecError(f"PowerPropagation(alpha={self.alpha}): at least 1")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        single(self, w)
        return w.new_zeros(()).expand(w.shape[:-1])

    def entered(self, w: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return w.sign() * w.abs() ** (1 / self.alpha)

    def value(self, theta: Float[Tensor, "..."], moment: Moment) -> Float[Tensor, "*units"]:
        assert moment.keep is not None
        return moment.keep.to(theta.dtype)

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return w.sign() * w.abs() ** self.alpha * value


@dataclass(frozen=True)
class SoftBoundary(Reselected):
    """w m, m = exp(w^2 / tau) / (exp(w^2 / tau) + exp(t^2 / tau)), t half way between the least |w| that the allocation
    keeps in the layer and the largest that it does not (parameter-free differentiable pruning: Cho, Adya & Naik 2023,
    NeurIPS, arXiv:2305.11203, section 3).

    The gradient passes through m, which pushes weights near the boundary off it. Shapes: w of any. Units: tau is in
    those of w^2. Cost: a scoring and a selection every `every` steps, two order statistics per use of a weight. Fails:
    `SpecError` for units of several weights. Differs: t is a constant to the gradient. A layer that is kept whole, or
    not at all, has no boundary: m is 1, or 0.
    """

    tau: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.tau > 0 and self.decay == 0):
            raise SpecError(f"{self}: tau > 0, and no decay")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        single(self, w)
        return super().__call__(w)

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        size, stay = w.detach().abs().flatten(), int(value.sum())
        gone = size.numel() - stay
        if gone == 0 or stay == 0:
            return w * value
        edge = (size.kthvalue(gone).values + size.kthvalue(gone + 1).values) / 2
        return w * ((w.square() - edge.square()) / self.tau).sigmoid()
