"""Gates that are plain factors and come to be exactly zero while they are trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


class AcceleratedProximal(torch.optim.Optimizer):
    """z = S(x - lr g, lr strength); v = z - x + momentum v; x = max(0, z + momentum v), with S the soft threshold:
    accelerated proximal gradient in the form of Nesterov's momentum (Huang & Wang 2018, arXiv:1707.01213, eqs. 10 to
    12, and the official code).
    """

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float, strength: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "strength": strength})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for x in group["params"]:
                if x.grad is None:
                    continue
                moved = torch.nn.functional.softshrink(x - rate * x.grad, rate * group["strength"])
                v = self.state[x].setdefault("velocity", torch.zeros_like(x))
                v.mul_(momentum).add_(moved - x)
                x.copy_((moved + momentum * v).clamp(min=0))


@dataclass(frozen=True)
class SparseScale(Gate):
    """theta itself, not negative, with the penalty strength * sum |theta|, by accelerated proximal gradient: scaling
    factors on the outputs of structures, of which many come to be zero (sparse structure selection: Huang & Wang 2018,
    ECCV, arXiv:1707.01213).

    Starts from 1; weights are trained along, by the user's optimizer. A zero stays zero unless the gradient is larger
    than `strength`. Shapes: theta `[*units]`. Units: factors, comparable everywhere. Cost: none to speak of. Differs:
    the rate of the factors is constant, where the official code divides it with that of the weights; the factor acts
    where a channel is read; of a residual branch (`Branch`) on what it ends in. Whole blocks get no gate.
    """

    strength: float = 0.01
    lr: float = 0.1
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.lr > 0 and 0 <= self.momentum < 1):
            raise SpecError(f"{self}: strength >= 0, lr > 0, 0 <= momentum < 1")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.ones_like(w[..., 0])

    def open(self, theta: Float[Tensor, "*units"], moment: Moment) -> Bool[Tensor, "*units"]:
        return theta > 0

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return AcceleratedProximal(parameters, self.lr, self.momentum, self.strength)


class Thresholded(torch.optim.SGD):
    """SGD, before each step of which what is not larger than `threshold` is set to zero, and its gradient too."""

    def __init__(self, parameters: list[Tensor], threshold: float, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.threshold = threshold

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for x in (x for group in self.param_groups for x in group["params"] if x.grad is not None):
            large = (x.abs() > self.threshold).to(x.dtype)
            x.mul_(large)
            x.grad.mul_(large)
        super().step()


@dataclass(frozen=True)
class Skeleton(Gate):
    """theta itself, with the penalty strength * sum |theta| by its subgradient; before every step what is not larger
    than `threshold` is set to zero, and its gradient with it (stripe-wise pruning: Meng et al. 2020, NeurIPS,
    arXiv:2009.14410, and the official code).

    Starts from 1, SGD with momentum and decay; weights are trained along, and hold their skeleton's values at the end.
    Momentum may carry a factor past zero and back over the threshold. Shapes: theta `[*units]`. Units: factors,
    comparable everywhere. Cost: one product per weight. Differs: the rate is constant, where the official code divides
    it with that of the weights.
    """

    strength: float = 1e-5
    threshold: float = 0.05
    lr: float = 0.1
    momentum: float = 0.9
    decay: float = 1e-4

    def __post_init__(self) -> None:
        if not (min(self.strength, self.threshold, self.decay) >= 0 and self.lr > 0 and 0 <= self.momentum < 1):
            raise SpecError(f"{self}: strength, threshold and decay >= 0, lr > 0, 0 <= momentum < 1")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.ones_like(w[..., 0])

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        return self.strength * torch.stack([t.abs().sum() for t in thetas.values()]).sum()

    def worth(self, theta: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
        return theta.abs()

    def open(self, theta: Float[Tensor, "*units"], moment: Moment) -> Bool[Tensor, "*units"]:
        return theta.abs() > self.threshold

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        settings = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.decay}
        return Thresholded(parameters, self.threshold, **settings)
