"""What a branch returns, in terms of what it is given: seen in runs with several batches, lengths and image sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.core.task import Example
from prunus.graph.depth.nothing import Path, arguments
from prunus.graph.flow import tensors_in
from prunus.graph.running import mapped
from prunus.graph.verify import outputs


class Unknown(Exception):
    """What a module returns does not follow from what it is given; why."""


Sides = tuple[tuple[int, ...], torch.dtype]
Given = dict[Path, Sides]
"""A call's tensors, by their paths among the arguments."""


class Calls:
    """What modules were given and what they returned, call by call.

    Attributes:
        given: by module and call, its tensors.
        made: by module and call, what to return, with `("shape", shape, type)` in place of `("zeros", path)`.
        plain: whether a module takes one tensor, and nothing else, and returns one of its shape and type.
        handed: how many of its calls returned what is then given to another of these modules as it is. Where something
            else comes in between (a ReLU in place) it must not be what the module was given.
    """

    def __init__(self) -> None:
        self.given: dict[str, list[Given]] = {}
        self.made: dict[str, list[Any]] = {}
        self.plain: dict[str, bool] = {}
        self.handed: dict[str, int] = {}
        self._out: dict[int, tuple[Tensor, int, str]] = {}

    @contextmanager
    def watch(self, model: nn.Module, names: Sequence[str]) -> Iterator[None]:
        """Look at every call of these modules."""

        def enter(args: Any, kwargs: Mapping[str, Any]) -> None:
            for tensor in tensors_in((args, dict(kwargs))):
                held, version, maker = self._out.pop(id(tensor), (None, 0, ""))
                if held is tensor and version == tensor._version:
                    self.handed[maker] = self.handed.get(maker, 0) + 1

        def leave(name: str, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            held = arguments(args, kwargs)
            self.given.setdefault(name, []).append({p: _sides(v) for p, v in held.items() if isinstance(v, Tensor)})
            self.made.setdefault(name, []).append(_described(output, held, next(iter(tensors_in(output)), None)))
            alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            alike = alone and _sides(args[0]) == _sides(output)
            self.plain[name] = self.plain.get(name, True) and alike
            if isinstance(output, Tensor):
                self._out[id(output)] = output, output._version, name

        handles = []
        for n in names:
            module = model.get_submodule(n)
            handles.append(module.register_forward_pre_hook(lambda m, a, k: enter(a, k), with_kwargs=True))
            handles.append(module.register_forward_hook(lambda m, a, k, o, n=n: leave(n, a, k, o), with_kwargs=True))
        try:
            yield
        finally:
            self._out.clear()
            for handle in handles:
                handle.remove()

    def passes(self, name: str) -> bool:
        """Whether an identity does in this module's place."""
        return self.plain[name] and self.handed.get(name) == len(self.made[name])

    def returns(self, name: str, native: Calls) -> Any:
        """What `Nothing` is to return in this module's place; `native` are calls in the model's own types.

        Raises:
            Unknown: it does not follow from the arguments.
        """
        return _common(self.made[name], self.given[name], native.made.get(name, []), native.given.get(name, []))


def _sides(tensor: Tensor) -> Sides:
    return tuple(tensor.shape), tensor.dtype


def _described(value: Any, held: Mapping[Path, Any], first: Tensor | None) -> Any:
    if value is None:
        return None
    for path, item in held.items():
        if item is value and not isinstance(value, bool | int | float | str):
            return "given", path
    if isinstance(value, Tensor):
        # What is not zero although the parameters are is left out: if something reads it, the trial says so.
        return ("shape", *_sides(value)) if value is first or not bool(value.any()) else None
    if type(value) in (tuple, list):
        return type(value).__name__, tuple((str(i), _described(v, held, first)) for i, v in enumerate(value))
    if type(value) is dict and all(isinstance(k, str) for k in value):
        return "dict", tuple((k, _described(v, held, first)) for k, v in value.items())
    return "other", type(value).__name__


def _common(made: Sequence[Any], given: Sequence[Given], types: Sequence[Any], held: Sequence[Given]) -> Any:
    """One description for all calls, and for those in the model's own types."""
    kinds = {None if m is None else m[0] for m in made}
    if None in kinds and kinds <= {None, "shape"}:
        return None  # zero in one run and not in another
    if len(kinds) > 1:
        raise Unknown("it does not return the same kind of thing every time")
    kind = kinds.pop()
    if kind == "other":
        raise Unknown(f"it returns a {made[0][1]}, which nothing else can make")
    if kind == "given":
        if len({m[1] for m in made}) > 1:
            raise Unknown("it does not return the same argument every time")
        return made[0]
    if kind == "shape":
        pairs = [(m, g) for m, g in zip(types, held, strict=False) if m is not None and m[0] == "shape"]
        return _zeros([m[1:] for m in made], given, [(m[2], g) for m, g in pairs])
    keys = [k for k, _ in made[0][1]]
    if any([k for k, _ in m[1]] != keys for m in made):
        raise Unknown("it returns more in one run than in another")
    items = []
    for i, key in enumerate(keys):
        there = [(m, g) for m, g in zip(types, held, strict=False) if m is not None and m[0] == kind and len(m[1]) > i]
        item = _common([m[1][i][1] for m in made], given, [m[1][i][1] for m, _ in there], [g for _, g in there])
        items.append((key, item) if kind == "dict" else item)
    return kind, tuple(items)


def _zeros(made: Sequence[Sides], given: Sequence[Given], types: Sequence[tuple[torch.dtype, Given]]) -> Any:
    """Zeros of the shape of an argument, or else of sizes that follow from arguments or are the same in all calls."""
    paths = [p for p in given[0] if all(p in g for g in (*given, *(g for _, g in types)))]
    typed = [
        p
        for p in paths
        if all(g[p][1] == m[1] for m, g in zip(made, given, strict=True)) and all(g[p][1] == t for t, g in types)
    ]
    if not typed:
        raise Unknown(f"it is given no {str(made[0][1]).removeprefix('torch.')}, which it returns")
    for path in typed:
        if all(g[path][0] == m[0] for m, g in zip(made, given, strict=True)):
            return "zeros", path
    if len({len(m[0]) for m in made}) > 1:
        raise Unknown("what it returns does not have as many axes every time")
    axes: list[int | tuple[Path, int]] = []
    for a, size in enumerate(made[0][0]):

        def follows(path: Path, axis: int, a: int = a) -> bool:
            pairs = zip(made, given, strict=True)
            return all(len(g[path][0]) > axis and g[path][0][axis] == m[0][a] for m, g in pairs)

        beside = [(p, a) for p in paths if follows(p, a)]
        if beside:
            axes.append(beside[0])
        elif len({m[0][a] for m in made}) == 1:
            axes.append(size)
        elif anywhere := [(p, k) for p in paths for k in range(len(given[0][p][0])) if follows(p, k)]:
            axes.append(anywhere[0])
        else:
            raise Unknown(f"axis {a} of what it returns follows from no axis of what it is given")
    return "zeros", typed[0], tuple(axes)


def variants(model: nn.Module, sample: Example | Tensor, batch: Example | Tensor) -> list[Example | Tensor]:
    """Inputs of other batch, length and image sizes that the model runs; none where it takes no other.

    Every size of the sample is changed wherever it occurs, and axis by axis where it occurs more than once.
    """
    found = []
    twice = mapped(sample, lambda t: torch.cat([t, t]) if t.dim() else t)
    for other in (batch, twice):
        if _runs(model, other):
            found.append(other)
            break
    shapes = [tuple(t.shape) for t in tensors_in(sample)]
    places: dict[int, list[tuple[int, int]]] = {}
    for i, shape in enumerate(shapes):
        for axis, size in enumerate(shape):
            if axis and size > 1:
                places.setdefault(size, []).append((i, axis))
    for size, where in places.items():
        for part in (where, *([p] for p in where if len(where) > 1)):
            for new in (size // 2, size - 1, 2 * size) if size < 32 else (size // 2, 2 * size):
                other = _resized(sample, set(part), new)
                if new > 0 and _runs(model, other):
                    found.append(other)
                    break
    return found


def _resized(sample: Example | Tensor, places: set[tuple[int, int]], new: int) -> Example | Tensor:
    count = iter(range(10**6))

    def change(tensor: Tensor) -> Tensor:
        i = next(count)
        for axis in [a for j, a in places if j == i]:
            tensor = torch.cat([tensor, tensor], axis).narrow(axis, 0, new)
        return tensor

    return mapped(sample, change)


def _runs(model: nn.Module, inputs: Example | Tensor) -> bool:
    try:
        return not any(bool(t.isnan().any()) for t in outputs(model, inputs))
    except DataError:
        return False
