"""Gates that learn how much of every weight stays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


def _rank(scores: Tensor) -> Tensor:
    """How many units of the group come before each one; ties in order."""
    order = scores.flatten().argsort(descending=True, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places.reshape(scores.shape)


class _TopShare(torch.autograd.Function):
    """1 for the first ceil(share n) of the scores; backward g for the scores, and the sum of g over what is kept."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, logit: Tensor) -> Tensor:
        keep = (_rank(scores) < math.ceil(float(logit.detach().sigmoid()) * scores.numel())).to(scores.dtype)
        ctx.save_for_backward(keep)
        return keep

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (keep,) = ctx.saved_tensors
        return grads[0], (grads[0] * keep).sum()


@dataclass(frozen=True)
class LearnedDensity(Gate):
    """1 for the ceil(sigmoid(v) n) units of highest score S of each weight, S and v trained straight through, with the
    penalty lambda max(0, sum sigmoid(v) n / sum n - density)^2 (LEAP: Yao et al. 2021, arXiv:2105.14636, and its
    official code).

    dL/dS is dL/dmask, dL/dv its sum over what is kept. lambda is strongest (`limit`) where everything is still there
    and falls with the square of what is too much, to `floor`; to `rest` where next to nothing is. Worth sigmoid(v)
    less the unit's rank over n, so that a global ranking keeps the learned share of every weight if these meet the
    budget. Adam. Shapes: theta `[..., columns + 1]`: S, and in the first entry of the last column v. Cost: a sort per
    weight and use. Differs: n counts weights, where the code knows the layers of BERT by name.
    """

    start: float = 10.0
    limit: float = 20000.0
    floor: float = 50.0
    rest: float = 10.0
    lr: float = 1e-2

    def __post_init__(self) -> None:
        if not (self.limit >= 0 and self.floor >= 0 and self.rest >= 0 and self.lr > 0):
            raise SpecError(f"{self}: limit, floor and rest are not negative, and lr > 0")

    def __call__(self, w: Weight) -> Float[Tensor, "..."]:
        scores = torch.zeros_like(w[..., 0])
        return torch.cat([scores, torch.full_like(scores[..., :1], self.start)], -1)

    def value(self, theta: Float[Tensor, "..."], moment: Moment) -> Float[Tensor, "..."]:
        mask: Tensor = _TopShare.apply(*_split(theta))  # type: ignore[no-untyped-call]
        return mask

    def penalty(self, thetas: Mapping[str, Float[Tensor, "..."]], moment: Moment) -> Float[Tensor, ""]:
        sizes = {n: _split(t)[0].numel() * moment.sizes[n] for n, t in thetas.items()}
        share = torch.stack([_split(t)[1].sigmoid() * sizes[n] for n, t in thetas.items()]).sum() / sum(sizes.values())
        excess = (share - moment.density).clamp(min=0).square()
        most = max(1 - moment.density, 1e-6) ** 2
        far = float(excess.detach())
        strength = max(self.limit * far / most, self.floor) if far >= 3e-4 else self.rest
        return strength * excess

    def worth(self, theta: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        scores, logit = _split(theta)
        return logit.sigmoid() - _rank(scores) / scores.numel()

    def open(self, theta: Float[Tensor, "..."], moment: Moment) -> Bool[Tensor, "..."]:
        return self.value(theta, moment) > 0

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr)


def _split(theta: Tensor) -> tuple[Tensor, Tensor]:
    """The scores, and the logit of the density."""
    return theta[..., :-1], theta[..., -1].reshape(-1)[0]
