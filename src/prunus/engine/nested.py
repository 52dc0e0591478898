"""Tensors in nested arguments and outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers; NaN equals NaN."""
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 0.0, 0.0, equal_nan=True))


def tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments or outputs."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors(value)


def moved(value: Any, device: str | torch.device) -> Any:
    """A nested value with its tensors on a device; itself where they are there."""
    return changed(value, lambda t: t.to(device))


def changed(value: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with other tensors; itself where none is another one."""
    if isinstance(value, Tensor):
        return make(value)
    if isinstance(value, Mapping):
        found = {k: changed(v, make) for k, v in value.items()}
        if all(found[k] is v for k, v in value.items()):
            return value
        return type(value)(found)  # type: ignore[call-arg]
    if isinstance(value, tuple | list):
        items = [changed(v, make) for v in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def afresh(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A nested value with copies of the lists, mappings and objects in it, which share its tensors and modules.

    What a call appends to these copies (keys and values to a cache) is not in the original.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, tuple):
        items = [afresh(v, memo) for v in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    plain = type(value) in (list, dict, set)
    if not plain and (isinstance(value, Tensor | Enum) or callable(value) or not hasattr(value, "__dict__")):
        return value
    twin = memo[id(value)] = copy.copy(value)
    if isinstance(twin, list):
        twin[:] = [afresh(v, memo) for v in twin]
    elif isinstance(twin, dict):
        twin.update((k, afresh(v, memo)) for k, v in list(twin.items()))
    if not plain:
        vars(twin).update((k, afresh(v, memo)) for k, v in list(vars(twin).items()))
    return twin
