"""Soft masks on structures, drawn to zero by accelerated shrinkage."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


class Fista(torch.optim.Optimizer):
    """x' = max(0, S(y - lr g, lr strength)), y = x + (t - 1) / t' (x - x before), t' = (1 + sqrt(1 + 4 t^2)) / 2 from
    t = 1, S the soft threshold: the fast iterative shrinkage-thresholding algorithm (Beck & Teboulle 2009), with the
    gradient at x, where the network was run, instead of y. Of every `wait` calls only the last makes a step.
    """

    def __init__(self, parameters: list[Tensor], lr: float, strength: float, wait: int) -> None:
        super().__init__(parameters, {"lr": lr, "strength": strength, "wait": wait})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient, if it is time."""
        for group in self.param_groups:
            for x in (x for x in group["params"] if x.grad is not None):
                state = self.state[x]
                state["calls"] = state.get("calls", torch.zeros((), dtype=torch.int64)) + 1
                if int(state["calls"]) % group["wait"]:
                    continue
                before, t = state.get("before", x), state.get("t")
                state["t"] = torch.ones((), dtype=torch.float64) if t is None else (1 + (1 + 4 * t**2).sqrt()) / 2
                y = x if t is None else x + float((t - 1) / state["t"]) * (x - before)
                state["before"] = x.clone()
                shrunk = torch.nn.functional.softshrink(y - group["lr"] * x.grad, group["lr"] * group["strength"])
                x.copy_(shrunk.clamp(min=0))


@dataclass(frozen=True)
class SoftMask(Gate):
    """theta itself, not negative, with the penalty strength * sum |theta| by `Fista`: the soft mask of generative
    adversarial learning (Lin et al. 2019, CVPR, arXiv:1903.09291, eqs. 9 to 12).

    Starts from 1; weights are trained along, by the user's optimizer. The mask makes a step after every `wait` steps of
    the weights: in all it can fall by lr * strength * steps / wait or a multiple of that, as momentum gathers; choose
    `strength` and `wait` for the length of the run. Shapes: theta `[*units]`. Units: factors, comparable everywhere.
    Cost: none to speak of. Differs: the rate is constant, where the official code divides it with that of the weights
    and begins momentum anew; its code adds the subgradient of the penalty to the gradient as well, which counts it
    twice; the factor acts where a channel is read; of a residual branch (`Branch`) on what it ends in.
    """

    strength: float = 0.6
    lr: float = 0.01
    wait: int = 200

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.lr > 0 and self.wait >= 1):
            raise SpecError(f"{self}: strength >= 0, lr > 0, wait >= 1")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return torch.ones_like(w[..., 0])

    def open(self, theta: Float[Tensor, "*units"], moment: Moment) -> Bool[Tensor, "*units"]:
        return theta > 0

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return Fista(parameters, self.lr, self.strength, self.wait)
