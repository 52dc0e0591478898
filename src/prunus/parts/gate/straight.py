"""Gates with nothing to learn: a network computes with masked weights, and the weights behind the mask live on."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.gate import Gate, Moment
from prunus.parts.evidence import Weight


class _Straight(torch.autograd.Function):
    """w * keep forward; backward the gradient as it is, plus decay * w where nothing is kept."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, keep: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(w, keep) if decay else None
        ctx.decay = decay
        return w * keep

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        if ctx.decay:
            w, keep = ctx.saved_tensors
            grad = torch.addcmul(grad, w, 1 - keep, value=ctx.decay)
        return grad, None, None


@dataclass(frozen=True)
class Straight(Gate):
    """The network computes with the kept weights; the gradient goes to all of them as if none were masked, and those
    that are not kept are drawn to zero by `decay` (dynamic pruning with feedback: Lin et al. 2020, ICLR,
    arXiv:2006.07253, without decay; SR-STE: Zhou et al. 2021, ICLR, arXiv:2102.04010, eq. 10).

    What is kept is what the last event chose; with `Reselected` it is chosen anew at every step. Shapes: w of any, keep
    of w's. Cost: one product per use of a weight, and the masks in the weights' type. As in the
    official code a loss scaler divides the decay, which lies beside the gradient, by its scale.
    """

    decay: float = 0.0
    trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.decay >= 0:
            raise SpecError(f"{type(self).__name__}(decay={self.decay}) must not be negative")

    def __call__(self, w: Weight) -> Float[Tensor, "*units"]:
        return w.new_zeros(()).expand(w.shape[:-1])

    def value(self, theta: Float[Tensor, "..."], moment: Moment) -> Float[Tensor, "*units"]:
        assert moment.keep is not None
        return moment.keep.to(theta.dtype)

    def weight(self, w: Float[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        out: Tensor = _Straight.apply(w, value, self.decay)  # type: ignore[no-untyped-call]
        return out


@dataclass(frozen=True)
class Reselected(Straight):
    """`Straight`, with the kept weights chosen anew every `every` steps by the recipe's criterion and allocation.

    Cost: also one scoring and one selection every `every` steps.
    """

    every: int = 1
    selects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise SpecError(f"Reselected(every={self.every}): at least 1")
