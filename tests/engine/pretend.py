"""Devices that are not there: tensors that say they lie on one, count on the CPU, and refuse to meet those of another.

What mixes devices, or takes a tensor for one in the CPU's memory, fails as it would on an accelerator. As there,
tensors of no dimensions from the CPU may meet any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

KIND = "xpu"
MAKERS = ("arange", "empty", "full", "linspace", "ones", "tensor", "zeros", "eye")
CROSSING = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


def pretended(device: Any) -> bool:
    return device is not None and torch.device(device).type == KIND


class Elsewhere(Tensor):
    """A tensor on a device of the kind `KIND`."""

    inner: Tensor
    place: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor, device: Any) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )
        made.inner, made.place = inner.detach(), torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.device}, {self.inner})"

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy: copy it to the CPU first")

    def cpu(self, **_: Any) -> Tensor:
        return self.inner.clone()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Elsewhere:
        copy = Elsewhere(self.inner.clone(), self.device)
        copy = nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy  # type: ignore[assignment]
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        places = {t.device for t in given if t.ndim or t.device.type == KIND}
        if len(places) > 1 and func not in CROSSING:
            raise RuntimeError(f"{func}: expected all tensors on one device, they are on {sorted(map(str, places))}")
        to = kwargs.get("device") or next(t.device for t in given if isinstance(t, Elsewhere))
        if func is torch.ops.aten.copy_.default:
            to = args[0].device
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        inside = lambda t: t.inner if isinstance(t, Elsewhere) else t  # noqa: E731
        found = func(*tree_map(inside, args), **tree_map(inside, kwargs))
        if func is torch.ops.aten.copy_.default:
            return args[0]
        if pretended(to):
            found = tree_map(lambda t: Elsewhere(t, to) if isinstance(t, Tensor) else t, found)
            return return_and_correct_aliasing(func, args, kwargs, found) if pretended(to) else found
        return found


class Carried(torch.autograd.Function):
    """A tensor, and on the way back its gradient, to another device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: Any) -> Tensor:
        ctx.back = x.device
        numbers = (x.inner if isinstance(x, Elsewhere) else x).clone()
        return Elsewhere(numbers, device) if pretended(device) else numbers

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.back), None


@contextmanager
def elsewhere() -> Iterator[None]:
    """While inside there are such devices: tensors and modules move to them, and are made on them."""
    before = {n: getattr(torch, n) for n in MAKERS}
    to = Tensor.to

    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        like = next((a for a in args if isinstance(a, Tensor)), self)
        device = kwargs.get("device") or next((a for a in args if isinstance(a, str | torch.device)), like.device)
        dtype = kwargs.get("dtype") or next((a for a in args if isinstance(a, torch.dtype)), like.dtype)
        if not isinstance(self, Elsewhere) and not pretended(device):
            return to(self, *args, **kwargs)
        if self.device == torch.device(device):
            return to(self, dtype=dtype, copy=bool(kwargs.get("copy", False)))
        found: Tensor = Carried.apply(to(self, dtype=dtype), device)  # type: ignore[no-untyped-call]
        return found

    def made_by(make: Any) -> Any:
        def make_there(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if not pretended(device):
                return make(*args, device=device, **kwargs)
            found = make(*args, **kwargs)
            return Elsewhere(found, device).requires_grad_(found.requires_grad)

        return make_there

    try:
        Tensor.to = moved  # type: ignore[method-assign, assignment]
        for name, make in before.items():
            setattr(torch, name, made_by(make))
        yield
    finally:
        Tensor.to = to  # type: ignore[method-assign]
        for name, make in before.items():
            setattr(torch, name, make)


def placed(module: nn.Module, device: str) -> nn.Module:
    """The module, its own parameters and buffers there."""
    for one in module.modules():
        for name, p in one._parameters.items():
            if p is not None:
                one._parameters[name] = nn.Parameter(p.detach().to(device), p.requires_grad)
        for name, b in one._buffers.items():
            one._buffers[name] = None if b is None else b.to(device)
    return module
