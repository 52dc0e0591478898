"""Sparse kernels for CPUs: packed weights, and products and convolutions with them that skip the zeros.

The kernels are C++ (`native/`), compiled with the package or at first use; `available()` says whether they are there.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Packed": "prunus.deploy.kernels.packed",
    "available": "prunus.deploy.kernels.library",
    "conv2d": "prunus.deploy.kernels.ops",
    "forms_of": "prunus.deploy.kernels.packed",
    "level": "prunus.deploy.kernels.library",
    "linear": "prunus.deploy.kernels.ops",
    "pack": "prunus.deploy.kernels.packed",
    "reason": "prunus.deploy.kernels.library",
    "use_level": "prunus.deploy.kernels.library",
}

if TYPE_CHECKING:
    from prunus.deploy.kernels.library import available, level, reason, use_level
    from prunus.deploy.kernels.ops import conv2d, linear
    from prunus.deploy.kernels.packed import Packed, forms_of, pack

__all__ = ["Packed", "available", "conv2d", "forms_of", "level", "linear", "pack", "reason", "use_level"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return found
