"""Tensors inside `torch.vmap`: what a weight is given there is one sample of many, and all of them are wanted."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import DataError

_functorch: Any = torch._C._functorch


def every_sample(x: Tensor, most: int | None = None) -> Tensor:
    """The tensor behind what `torch.vmap` shows of it, the axes that are mapped over in front; others as they are.

    With `most` axes at most: those in front are one then (samples of a convolution). Detached; no copy but of strides.
    """
    x = x.detach()
    if not _functorch.is_functorch_wrapped_tensor(x):
        return x
    while _functorch.is_functorch_wrapped_tensor(x):
        place = _functorch.maybe_get_bdim(x)
        x = _functorch.get_unwrapped(x)
        if place >= 0:
            x = x.movedim(place, 0)
    return x.detach() if most is None or x.ndim <= most else x.detach().flatten(0, x.ndim - most)


def is_one_of_many(tensors: Iterable[Tensor]) -> bool:
    """Whether `torch.vmap` or another transform of `torch.func` stands between one of these tensors and its numbers."""
    return any(_functorch.is_functorch_wrapped_tensor(t) for t in tensors)


def refuse_gradients(name: str, x: Tensor) -> None:
    """What flows back into one sample alone cannot be seen. Errors: `DataError`."""
    if _functorch.is_functorch_wrapped_tensor(x):
        raise DataError(
            f"{name} is used inside torch.vmap or another transform of torch.func, where the gradients of its inputs "
            f"cannot be seen: take a method that needs none of them, or call the layer on the whole batch"
        )
