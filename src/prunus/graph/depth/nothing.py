"""What stands in the place of a removed branch: it returns zeros and computes nothing.

What it returns is said by a plain value that JSON can hold, so that it can be written down in an edit:

    None                           None
    ("zeros", path)                zeros of the shape and type of an argument
    ("zeros", path, (size, ...))   zeros of its type; a size is a number, or (path, axis) of an argument
    ("given", path)                an argument as it is
    ("tuple", (...))               a tuple of such; also ("list", (...)) and ("dict", ((key, ...), ...))

A path leads to an argument: its position or its name, and then positions or keys within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunus.core.errors import SpecError

Path = tuple[int | str, ...]
DEEPEST = 8
LARGEST = 2**31


class Nothing(nn.Module):
    """Has no parameters and returns zeros (see the module's description of `returns`).

    The sizes of axes that follow from no argument are kept as `sizes`, where the dependency engine finds them.

    Raises:
        SpecError: `returns` does not say what to return.
    """

    def __init__(self, returns: Any = ("zeros", (0,))) -> None:
        super().__init__()
        self.returns = checked(returns)
        self.sizes: tuple[int, ...] = tuple(_numbers(self.returns))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._made(self.returns, args, kwargs, iter(self.sizes))

    def _made(self, returns: Any, args: Any, kwargs: Any, sizes: Iterator[int]) -> Any:
        if returns is None:
            return None
        kind = returns[0]
        if kind == "given":
            return found(returns[1], args, kwargs)
        if kind == "zeros":
            like = found(returns[1], args, kwargs)
            if len(returns) == 2:
                return torch.zeros_like(like)
            shape = []
            for axis in returns[2]:
                if isinstance(axis, int):
                    shape.append(next(sizes))
                else:
                    shape.append(found(axis[0], args, kwargs).shape[axis[1]])
            return like.new_zeros(shape)
        if kind == "dict":
            return {key: self._made(item, args, kwargs, sizes) for key, item in returns[1]}
        items = [self._made(item, args, kwargs, sizes) for item in returns[1]]
        return tuple(items) if kind == "tuple" else items

    def extra_repr(self) -> str:
        """What it returns."""
        return repr(self.returns)


def found(path: Any, args: Any, kwargs: Any) -> Any:
    """The argument at a path."""
    value = args[path[0]] if isinstance(path[0], int) else kwargs[path[0]]
    for step in path[1:]:
        value = value[step]
    return value


def _numbers(returns: Any) -> list[int]:
    """The sizes that follow from no argument, in the order in which they are read."""
    if returns is None or returns[0] == "given":
        return []
    if returns[0] == "zeros":
        return [axis for axis in returns[2] if isinstance(axis, int)] if len(returns) == 3 else []
    items = [item for _, item in returns[1]] if returns[0] == "dict" else returns[1]
    return [n for item in items for n in _numbers(item)]


def checked(returns: Any, depth: int = 0) -> Any:
    """The same in tuples.

    Raises:
        SpecError: it does not say what to return.
    """
    if returns is None:
        return None
    wrong = SpecError(f"not a description of what to return: {str(returns)[:200]}")
    if depth > DEEPEST or not isinstance(returns, list | tuple) or len(returns) not in (2, 3):
        raise wrong
    kind, what = returns[0], returns[1]
    if kind in ("zeros", "given") and _path(what) and (len(returns) == 2 or kind == "zeros"):
        if len(returns) == 2:
            return kind, tuple(what)
        if not isinstance(returns[2], list | tuple) or not all(map(_axis, returns[2])):
            raise wrong
        return kind, tuple(what), tuple(a if type(a) is int else (tuple(a[0]), a[1]) for a in returns[2])
    if len(returns) != 2 or not isinstance(what, list | tuple):
        raise wrong
    if kind in ("tuple", "list"):
        return kind, tuple(checked(item, depth + 1) for item in what)
    if kind == "dict" and all(isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str) for p in what):
        return kind, tuple((key, checked(item, depth + 1)) for key, item in what)
    raise wrong


def _path(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= DEEPEST:
        return False
    return all(type(v) is str or (type(v) is int and 0 <= v < LARGEST) for v in value)


def _axis(value: Any) -> bool:
    if type(value) is int:
        return 0 <= value < LARGEST
    pair = isinstance(value, list | tuple) and len(value) == 2 and _path(value[0])
    return pair and type(value[1]) is int and 0 <= value[1] < 64


def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Path, Any]:
    """Everything in the arguments of a call, by its path."""
    tops: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return {path: value for key, item in tops for path, value in _within((key,), item)}


def _within(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    yield path, value
    if len(path) == DEEPEST:
        return
    if type(value) in (tuple, list):
        for i, item in enumerate(value):
            yield from _within((*path, i), item)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is str:
                yield from _within((*path, key), item)
