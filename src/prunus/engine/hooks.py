"""PyTorch's own step hooks on one optimizer, and what they multiply at every step."""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.counting import full
from prunus.core.errors import SpecError
from prunus.engine.shards import local, part, whole


class Hooks:
    """The step hooks on one optimizer: gradients of pruned weights are zeroed before its step, the weights after it.

    What the hooks touch is looked up when masks change and kept as lists, the masks as numbers of the parameter's type:
    bool masks would take the slow path of `torch._foreach_mul_` (five times slower on a CPU), these take the memory of
    one more copy of the masked weights. Parameters of which nothing is pruned cost nothing.

    Attributes:
        optimizer: the optimizer that is hooked.
        names: the model's parameters that this optimizer trains.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        opening: Callable[["Hooks"], None],
        ready: Callable[["Hooks"], None],
        stepped: Callable[["Hooks"], None],
    ) -> None:
        """Hook in.

        opening: runs before a step. ready: once its gradients exist (inside the closure, where there is one).
        stepped: after it, unless it was skipped for infinite gradients.
        """
        self.optimizer = optimizer
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.names = {n: p for n, p in parameters.items() if id(p) in held}
        self._opening, self._ready, self._stepped = opening, ready, stepped
        self._weights: list[nn.Parameter] = []
        self._masks: list[Tensor] = []
        self._withheld: list[tuple[nn.Parameter, Tensor]] = []
        self._depth = 0
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def hold(self, masks: Mapping[str, Tensor]) -> None:
        """Keep these masks from now on: parameter name -> bool of its shape."""
        partial = {n: m for n, m in masks.items() if n in self.names and not full(m)}
        self._weights = [self.names[n] for n in partial]
        self._masks = [part(m, self.names[n]).to(self.names[n].dtype) for n, m in partial.items()]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights."""
        pairs = [(local(p.grad), m) for p, m in zip(self._weights, self._masks, strict=True) if p.grad is not None]
        if pairs:
            torch._foreach_mul_([g for g, _ in pairs], tuple(m for _, m in pairs))

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Zero pruned weights, whatever the optimizer did to them (decay, momentum, noise)."""
        if self._weights:
            torch._foreach_mul_([local(p) for p in self._weights], tuple(self._masks))

    def kept_gradients(self) -> list[Tensor]:
        """The gradients, those of pruned weights as zeros."""
        masks = {id(p): m for p, m in zip(self._weights, self._masks, strict=True)}
        found: list[Tensor] = []
        for p in self.names.values():
            if p.grad is not None:
                found.append(p.grad.detach().clone() if id(p) in masks else p.grad.detach())
                if id(p) in masks:
                    local(found[-1]).mul_(masks[id(p)])
        return found

    def withhold(self, idle: Callable[[Tensor], bool] = lambda grad: True) -> None:
        """Hide gradients from the step at hand, all or those that are `idle`: it then leaves their parameters as they
        are, without decay or momentum. They are back after it.
        """
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and idle(p.grad):
                    self._withheld.append((p, p.grad))
                    p.grad = None

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._depth and self._within_step():
            self._depth += 1
            return None
        self._depth, self._withheld = 1, []  # whatever a step that failed has left
        self._opening(self)
        # torch passes the optimizer itself as the first argument; a closure may come by position or by name.
        place = next((i for i, a in enumerate(args) if callable(a) and a is not optimizer), None)
        closure = kwargs.get("closure") if place is None else args[place]
        if closure is None:
            self._ready(self)
            return None

        def wrapped() -> Any:
            self._give_back()
            loss = closure()  # gradients exist only now (Lightning and L-BFGS step this way)
            self._ready(self)
            return loss

        if place is None:
            return args, {**kwargs, "closure": wrapped}
        return (*args[:place], wrapped, *args[place + 1 :]), kwargs

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._give_back()
        # A fused optimizer under GradScaler decides inside its step whether to skip it; others are not even called.
        infinite = getattr(optimizer, "found_inf", None)
        if infinite is None or not float(infinite):
            self._stepped(self)

    def _within_step(self) -> bool:
        """Whether a step of the same optimizer is running: one that calls `super().step` makes torch run hooks
        twice.
        """
        code = getattr(type(self.optimizer).step, "__code__", None)
        frame: FrameType | None = sys._getframe()
        running = 0
        while frame is not None:
            running += frame.f_code is code and frame.f_locals.get("self") is self.optimizer
            frame = frame.f_back
        return running > 1

    def _give_back(self) -> None:
        for p, grad in self._withheld:
            p.grad = grad
        self._withheld = []


def calling_scaler() -> Any:
    """The GradScaler from within whose `step` this is called; None where there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not torch.amp.GradScaler.step.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


@torch.no_grad()
def clip_(every: Iterable[Hooks], max_norm: float, norm_type: float) -> Tensor:
    """Scale all gradients as `torch.nn.utils.clip_grad_norm_` does, by the norm of those of kept weights."""
    every = list(every)
    norm = whole(torch.nn.utils.get_total_norm([g for h in every for g in h.kept_gradients()], norm_type))
    for g in (local(p.grad) for h in every for p in h.names.values() if p.grad is not None):
        g.mul_(torch.clamp(max_norm / (norm.to(g.device) + 1e-6), max=1.0).to(g.dtype))
    return norm


def hookable(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer whose steps can be followed: itself, or what an Accelerate or Lightning wrapper holds.

    The outermost one that runs hooks is taken, so that what a wrapper writes after the inner step is masked as well.
    Errors: `SpecError` for anything that runs no step hooks.
    """
    inner = optimizer
    while not (isinstance(inner, torch.optim.Optimizer) and getattr(type(inner).step, "hooked", False)):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            kind = type(optimizer).__name__
            raise SpecError(
                f"attach() takes a torch optimizer whose step() runs PyTorch's step hooks, and {kind} is none: pass "
                f"the optimizer that it wraps (a torch.optim.Optimizer made by calling Optimizer.__init__)"
            )
    assert isinstance(inner, torch.optim.Optimizer)
    return inner
