"""Dispatch modes that see what happens inside higher-order operators: `torch.cond`, loops, scans, flex attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_CLOSED = ("scan", "associative_scan", "map_impl")  # these run under no mode, and stack what they made
_WRITTEN_OUT = torch._C.DispatchKey.CompositeExplicitAutograd


class Throughout(TorchDispatchMode):
    """A mode to which such an operator is the operations that it is made of."""

    supports_higher_order_operators = True

    def inside(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Run an operator in its form in Python, every operation of which comes back to this mode.

        Errors: `NotImplementedError` where it has none, or does more under no mode than call its functions.
        """
        written = getattr(func, "py_kernels", {}).get(_WRITTEN_OUT)
        if written is None or str(func) in _CLOSED:
            raise NotImplementedError(f"{func} is a higher-order operator whose operations cannot be seen")
        if func is torch.ops.higher_order.cond:  # runs under no mode, and does nothing but call one of two functions
            return written(*(self._entered(a) if callable(a) else a for a in args), **(kwargs or {}))
        with self:
            return written(*args, **(kwargs or {}))

    def _entered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with self:
                return function(*args)

        return run


def is_higher(func: Any) -> bool:
    """Whether this is an operator that is given functions, and none of ATen's or of a library's."""
    return not isinstance(func, torch._ops.OpOverload)
