"""Gates that are thresholds: the weights behind them are compared with what is learned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


def single(gate: Gate, w: Float[Tensor, "*units k"]) -> None:
    """Refuse units of several weights: a threshold for |w| says nothing about them."""
    if w.shape[-1] != 1:
        raise SpecError(
            f"{type(gate).__name__} compares single weights with a threshold: use Element, not larger units"
        )


@dataclass(frozen=True)
class SoftThresholding(Gate):
    """sign(w) max(0, |w| - sigmoid(s)), one s for each layer, trained with the weights (soft threshold
    reparameterization: Kusupati et al. 2020, ICML, arXiv:2002.03231, section 3).

    s starts far below zero, where the threshold is next to nothing, and is driven up by its own weight decay, down by
    the loss. SGD with a cosine rate. Worth -sigmoid(s), which `AboveThreshold` adds to |w|. Shapes: s `[1, 1]` per
    layer. Units: thresholds for |w|. Cost: one pass over the weights per use. Fails: `SpecError` for units of several
    weights. Differs: in the paper s shares the optimizer of the weights, and start and decay set the density
    (start -3200 and decay 2.3e-5 for 90 % of ResNet-50 on ImageNet in the official code); here the budget does, and
    these are for short runs.
    """

    start: float = -10.0
    decay: float = 5e-4
    lr: float = 0.1
    momentum: float = 0.9
    sees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.decay >= 0 and self.lr > 0 and 0 <= self.momentum < 1):
            raise SpecError(f"{self}: decay >= 0, lr > 0 and 0 <= momentum < 1")

    def __call__(self, w: Weight) -> Float[Tensor, "..."]:
        single(self, w)
        return w.new_full([1] * (w.ndim - 1), self.start)

    def value(self, theta: Float[Tensor, "..."], moment: Moment) -> Float[Tensor, "..."]:
        return theta.sigmoid()

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return w.sign() * (w.abs() - value).relu()

    def worth(self, theta: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -theta.sigmoid()

    def open(self, theta: Float[Tensor, "..."], moment: Moment) -> Bool[Tensor, "..."]:
        assert moment.w is not None
        return moment.w.squeeze(-1).abs() > theta.sigmoid()

    def rate(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.decay)


class _Step(torch.autograd.Function):
    """1 where x > 0; backward 2 - 4 |x| up to |x| = 0.4, 0.4 up to 1, and 0 beyond."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        far = ctx.saved_tensors[0].abs()
        slope = (2 - 4 * far).masked_fill(far > 0.4, 0.4).masked_fill(far > 1, 0.0)
        out: Tensor = grads[0] * slope
        return out


@dataclass(frozen=True)
class MaskingThreshold(Gate):
    """w where |w| > t and 0 elsewhere, one t for each neuron or filter, trained with the weights through a long-tailed
    derivative of the step, with the penalty strength * sum exp(-t) (dynamic sparse training: Liu et al. 2020, ICLR,
    arXiv:2005.06870, section 3).

    The gradient passes to w as well, by the weight and by the mask. Starts from 0; where a layer would be left with
    less than `least` of its weights, its thresholds start anew. SGD. Worth -t, which `AboveThreshold` adds to |w|.
    Shapes: t `[rows, 1]`. Units: thresholds for |w|. Cost: a few passes over the weights per use. Fails: `SpecError`
    for units of several weights. Differs: t has an optimizer of its own, with a constant rate. strength sets the
    density in the paper (1e-6 to 5e-4); here the budget does, and strength moves the layers apart.
    """

    strength: float = 1e-5
    least: float = 0.01
    lr: float = 0.1
    momentum: float = 0.9
    sees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and 0 <= self.least < 1 and self.lr > 0 and 0 <= self.momentum < 1):
            raise SpecError(f"{self}: strength >= 0, 0 <= least < 1, lr > 0 and 0 <= momentum < 1")

    def __call__(self, w: Weight) -> Float[Tensor, "rows 1"]:
        single(self, w)
        return torch.zeros_like(w[..., :1, 0])

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        mask: Tensor = _Step.apply(w.abs() - value)  # type: ignore[no-untyped-call]
        return w * mask

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        return self.strength * torch.stack([(-t).exp().sum() for t in thetas.values()]).sum()

    def worth(self, theta: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -theta

    def open(self, theta: Float[Tensor, "..."], moment: Moment) -> Bool[Tensor, "..."]:
        assert moment.w is not None
        return moment.w.squeeze(-1).abs() > theta

    def restarted(self, theta: Float[Tensor, "..."], moment: Moment) -> Float[Tensor, "..."]:
        empty = self.open(theta, moment).to(theta.dtype).mean() <= self.least
        return torch.zeros_like(theta) if bool(empty) else theta

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)


@dataclass(frozen=True)
class LayerThreshold(Gate):
    """sigmoid((s - t) / tau), s the Euclidean norm of a unit's weights over the mean of its layer's, t a threshold for
    each layer, trained by the task's loss and the term strength * max(0, left - goal)^2, left the mean of the gates: a
    budget moves the thresholds, the loss says which of them (inspired by layer-adaptive progressive pruning: Zhai et
    al. 2023, arXiv:2309.14157).

    tau falls from `hot` to `cold` as a geometric series, so that gates come to be 0 and 1; goal falls from 1 to the
    density in a straight line over the share `warm` of the steps. No gradient goes from s to the weights, which are
    trained along with their gates on. What stays is multiplied by 1. t starts from `start`; Adam. Worth s - t.
    `weighs="weights"` takes left over the weights that units own.

    Shapes: t `[1, ...]` per layer. Units: norms over their layer's mean, comparable across layers. Cost: a norm per
    unit and use. Differs: of the paper its abstract could be read, which has a threshold for each layer, both terms and
    the gradual path; the functions and numbers are these. It adds a light bypass to every layer, which is not here.
    """

    hot: float = 0.1
    cold: float = 0.03
    start: float = 0.0
    strength: float = 300.0
    warm: float = 0.8
    lr: float = 0.05
    weighs: Literal["units", "weights"] = "units"
    sees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.hot >= self.cold > 0 and self.strength >= 0 and 0 <= self.warm <= 1 and self.lr > 0):
            raise SpecError(f"{self}: hot >= cold > 0, strength >= 0, 0 <= warm <= 1, lr > 0")

    def __call__(self, w: Weight) -> Float[Tensor, "..."]:
        return w.new_full([1] * (w.ndim - 1), self.start)

    def value(self, theta: Float[Tensor, "..."], moment: Moment) -> Float[Tensor, "..."]:
        assert moment.w is not None
        over, far = self.worth_over(theta, moment.w), moment.progress
        tau = self.hot ** (1 - far) * self.cold**far
        return torch.ones_like(over) if far >= 1 else (over / tau).sigmoid()

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        values = {n: self.value(t, moment.others[n]) for n, t in thetas.items()}
        left = mean_of(values, moment.sizes if self.weighs == "weights" else dict.fromkeys(values, 1.0))
        goal = 1 - (1 - moment.density) * (min(1.0, moment.progress / self.warm) if self.warm else 1.0)
        return self.strength * (left - goal).clamp(min=0).square()

    def worth_over(self, theta: Float[Tensor, "..."], w: Float[Tensor, "*units k"]) -> Float[Tensor, "*units"]:
        size = torch.linalg.vector_norm(w, dim=-1).to(theta)
        return torch.sub(size / size.mean().clamp(min=torch.finfo(size.dtype).tiny), theta)

    def open(self, theta: Float[Tensor, "..."], moment: Moment) -> Bool[Tensor, "..."]:
        assert moment.w is not None
        return self.worth_over(theta, moment.w) > 0

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


def mean_of(values: Mapping[str, Float[Tensor, "..."]], sizes: Mapping[str, float]) -> Float[Tensor, ""]:
    """The mean of all units' values, a unit of a group counting as much as its size."""
    total = torch.stack([sizes[n] * v.sum() for n, v in values.items()]).sum()
    return total / sum(sizes[n] * v.numel() for n, v in values.items())
