"""Gates that begin where the weights are: scores of a pretrained network, trained alone or against the weights."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.parts.evidence import Weight
from prunus.parts.gate.scores import Popup


@dataclass(frozen=True)
class ScaledPopup(Popup):
    """`Popup` that starts from sqrt(6 / fan in) |w| / max |w|, the maximum over the layer: before the first step the
    units of largest weight are kept (HYDRA: Sehwag et al. 2020, NeurIPS, arXiv:2002.10509, section 3).

    Weights stay as they are while scores are trained; of units with several weights |w| is their Euclidean norm.
    Shapes, units, cost: those of `Popup`. Differs: the paper keeps the sign of w, which the ranking by |theta| takes
    away; a score that crosses zero grows again either way.
    """

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        size = torch.linalg.vector_norm(w, dim=-1)
        fan = w.shape[-2] if w.shape[-1] == 1 else w.shape[-1]
        scaled: Tensor = size / size.max().clamp(min=torch.finfo(size.dtype).tiny)
        return math.sqrt(6 / fan) * scaled


class _Implicit(torch.autograd.Function):
    """w * m; backward g m for w, and g w - step * g (g m) for m: the chain rule through weights that answer to m."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, mask: Tensor, step: float) -> Tensor:
        ctx.save_for_backward(w, mask)
        ctx.step = step
        return w * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        w, mask = ctx.saved_tensors
        return grad * mask, grad * w - ctx.step * grad.square() * mask, None


@dataclass(frozen=True)
class BiLevel(ScaledPopup):
    """`ScaledPopup` over weights that are trained along, m the upper and the weights theta the lower variable: dL/dm =
    theta dL/dz - step dL/dz dL/dtheta, z = m theta (bi-level pruning: Zhang et al. 2022, NeurIPS, arXiv:2210.04092,
    eq. 6; step = 1 / gamma, the curvature that is given to the lower problem).

    The second term is the implicit gradient: how the lower problem's solution answers to the mask, its Hessian of the
    loss left out. The user's optimizer makes the lower step, its weight decay is the lower problem's. m is projected
    onto the budget by the allocation at every step. SGD with a cosine rate.

    Shapes: theta `[*units]`, gradients summed over a unit's weights. Units, cost: those of `Popup`. Differs: the paper
    makes a lower step on one batch and then an upper one on another; here both go by the same gradients of one batch.
    """

    step: float = 1e-4
    freezes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step >= 0:
            raise SpecError(f"BiLevel(step={self.step}) must not be negative")

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        out: Tensor = _Implicit.apply(w, value.expand_as(w), self.step)  # type: ignore[no-untyped-call]
        return out
