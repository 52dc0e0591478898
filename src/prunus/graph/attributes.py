"""The integers that modules keep, as sizes that remember where they are kept, for as long as a model is traced."""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.graph.sizes import Size

if TYPE_CHECKING:
    from prunus.graph.lengths import Lengths

_OPAQUE = (nn.Module, Tensor, type, enum.Enum, types.FunctionType, types.MethodType, types.ModuleType, torch.dtype)


@contextmanager
def remembered(model: nn.Module, lengths: Lengths) -> Iterator[None]:
    """Integers that modules (and plain objects that modules hold, such as a configuration) keep, as `Size`s."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in list(vars(module).items()):
            if name.startswith("__") or name in _NEVER:
                continue
            _remember(vars(module), name, value, prefix + name, lengths, before)
            if not isinstance(value, _OPAQUE) and isinstance(inner := getattr(value, "__dict__", None), dict):
                if id(value) in seen:
                    continue
                seen.add(id(value))
                for key, item in list(inner.items()):
                    _remember(inner, key, item, f"{prefix}{name}.{key}", lengths, before)
    # einops keeps the sizes it has computed by value, and so would hand those of one module to the next.
    einops: Any = sys.modules.get("einops.einops")
    cached = getattr(einops, "_reconstruct_from_shape", None)
    plain = getattr(einops, "_reconstruct_from_shape_uncached", None)
    try:
        if cached is not None and plain is not None:
            einops._reconstruct_from_shape = plain
        yield
    finally:
        if cached is not None and plain is not None:
            einops._reconstruct_from_shape = cached
        for holder, name, value in before:
            holder[name] = value


_NEVER = frozenset(("training", "_version", "_parameters", "_buffers", "_modules", "_is_full_backward_hook"))


def _remember(
    holder: dict[str, Any],
    name: str,
    value: Any,
    target: str,
    lengths: Lengths,
    before: list[tuple[dict[str, Any], str, Any]],
) -> None:
    new: Any
    if type(value) is int and value > 1:
        new = Size.make(lengths, value, target=target)
    elif type(value) in (tuple, list) and 0 < len(value) <= 64 and all(type(v) is int for v in value):
        sizes = [Size.make(lengths, v, target=f"{target}[{i}]") if v > 1 else v for i, v in enumerate(value)]
        new = type(value)(sizes)
    else:
        return
    before.append((holder, name, value))
    holder[name] = new
