"""Copies of models that share nothing with them: `copy.deepcopy`, and functions that know the model as well.

`copy.deepcopy` leaves functions as they are. One that a module keeps (a lambda, a hook, a forward that was wrapped or
compiled) and that has the module in its closure or its defaults goes on to run the modules of the original: the copy
computes with weights that are not its own, whatever is done to it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar
from weakref import ref

from torch import Tensor, nn

from prunus.graph.running import computed

Module = TypeVar("Module", bound=nn.Module)
_EMPTY = object()
_OTHERS = {"builtins", "torch", *sys.stdlib_module_names}  # nothing of theirs that a closure holds is a helper's


def duplicate(model: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy of a model that runs its own modules only.

    Functions in it that refer to what was copied (themselves, or through an object or a weak reference that they hold)
    are made anew and refer to the copies. What `torch.compile` made of such a function is the function as it was
    written.

    Args:
        model: the model, or a part of one.
        memo: what `copy.deepcopy` is to take for copies, by the `id` of the original; by default what `computed` gives.

    Cost: a copy. Errors: those of `copy.deepcopy`.
    """
    memo = computed(model) if memo is None else memo
    twin = copy.deepcopy(model, memo)
    _Functions(memo).put_right()
    return twin


class _Functions:
    """The functions of a copy, given what was copied."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self.memo = memo
        self.made: dict[int, Any] = {}
        self.cells: dict[int, CellType] = {}

    def put_right(self) -> None:
        """Go through all copies once and give them functions of their own."""
        kept = id(self.memo)  # where `copy.deepcopy` holds the originals
        for value in [v for k, v in self.memo.items() if k != kept]:
            if isinstance(value, dict):
                self._entries_(value)
            elif isinstance(value, list):
                value[:] = [self.own(v) for v in value]
            elif not isinstance(value, Tensor | type) and isinstance(fields := getattr(value, "__dict__", None), dict):
                self._entries_(fields)

    def _entries_(self, entries: dict[Any, Any]) -> None:
        for key, value in list(entries.items()):
            if (own := self.own(value)) is not value:
                entries[key] = own

    def own(self, value: Any) -> Any:
        """The value itself, or if it is or holds a function that refers to an original, one that refers to the copy."""
        if not isinstance(value, FunctionType | MethodType | partial | ref | list | tuple):
            return value
        return self._made(value) if self._refers(value, set()) else value

    def _refers(self, value: Any, seen: set[int]) -> bool:
        """Whether something that was copied can be reached from here."""
        if id(value) in self.memo and self.memo[id(value)] is not value:
            return True
        if id(value) in seen:
            return False
        seen.add(id(value))
        return any(self._refers(part, seen) for part in _parts(value))

    def _made(self, value: Any) -> Any:
        """What takes the place of a value in a copy."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if id(value) in self.made:
            return self.made[id(value)]
        if not self._refers(value, set()):
            return value
        made: Any
        if isinstance(value, FunctionType):
            made = self._function(value)
        elif isinstance(value, MethodType):
            made = MethodType(self._made(value.__func__), self._made(value.__self__))
        elif isinstance(value, partial):
            made = partial(self._made(value.func), *map(self._made, value.args), **self._mapping(value.keywords))
        elif isinstance(value, ref):
            made = ref(self._made(value()))
        elif _is_object(value):
            made = self.made[id(value)] = copy.copy(value)
            vars(made).update(self._mapping(vars(value)))
        elif isinstance(value, list):
            made = self.made[id(value)] = copy.copy(value)
            made[:] = map(self._made, value)
        elif isinstance(value, dict):
            made = self.made[id(value)] = copy.copy(value)
            made.update(self._mapping(value))
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            made = type(value)(*map(self._made, value))
        else:
            made = type(value)(map(self._made, value))
        self.made[id(value)] = made
        return made

    def _mapping(self, value: Mapping[Any, Any]) -> dict[Any, Any]:
        return {k: self._made(v) for k, v in value.items()}

    def _function(self, function: FunctionType) -> Any:
        written = getattr(function, "_torchdynamo_orig_callable", None)
        if written is not None:
            return self._made(written)
        cells = tuple(self.cells.setdefault(id(c), CellType()) for c in function.__closure__ or ())
        made = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        self.made[id(function)] = made  # before its cells, among which it may be itself
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            if (held := _held(old)) is not _EMPTY and _held(cell) is _EMPTY:
                cell.cell_contents = self._made(held)
        made.__defaults__ = function.__defaults__ and tuple(map(self._made, function.__defaults__))
        made.__kwdefaults__ = function.__kwdefaults__ and self._mapping(function.__kwdefaults__)
        made.__dict__.update(self._mapping(vars(function)))
        made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
        return made


def _parts(value: Any) -> list[Any]:
    """What a function or a container refers to."""
    if isinstance(value, FunctionType):
        held = [h for c in value.__closure__ or () if (h := _held(c)) is not _EMPTY]
        return [*held, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, ref):
        return [value()]
    if type(value) in (dict, list, tuple, set, frozenset):
        return list(value.values() if isinstance(value, dict) else value)
    return list(vars(value).values()) if _is_object(value) else []


def _is_object(value: Any) -> bool:
    """Whether this is an object of a class that somebody wrote, with fields and nothing else to it."""
    if isinstance(value, nn.Module | Tensor | type | ModuleType | FunctionType | partial | Mapping | list | tuple):
        return False
    return type(value).__module__.partition(".")[0] not in _OTHERS and hasattr(value, "__dict__")


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that was never set
        return _EMPTY
