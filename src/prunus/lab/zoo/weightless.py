"""Networks whose weights take no memory: names, shapes and types alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.core.errors import SpecError
from prunus.lab import zoo


class _Undrawn(TorchFunctionMode):
    """Leaves random numbers out: on the meta device they load a compiler, which takes a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def weightless(name: str, **options: Any) -> nn.Module:
    """A network of the zoo on the meta device.

    Args:
        name, options: as `zoo.build` takes them.

    Cost: some hundredths of a second, no memory. Errors: those of `zoo.build`; `SpecError` also for values with which
    no network can be built (negative, infinite, of another type).
    """
    try:
        with torch.device("meta"), _Undrawn():
            return zoo.build(name, **options)
    except (RuntimeError, TypeError, OverflowError, ZeroDivisionError) as error:
        told = ", ".join(f"{k}={v}" for k, v in options.items())
        first = str(error).strip().partition("\n")[0]
        raise SpecError(f"there is no {name} with {told}: {first[:200]}") from error
