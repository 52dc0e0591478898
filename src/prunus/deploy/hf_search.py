"""Find the configuration from which transformers would build a compact model.

Nothing is looked up by the names of fields. The class is built on the meta device from changed configurations, and what
it then looks like (shapes of all parameters and buffers, numbers that modules hold) is compared with the compact model.
"""

from __future__ import annotations

import copy
import heapq
import importlib
import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import nn

from prunus.graph.running import FAILURES

Path = tuple[str | int, ...]
"""Where a number stands in a configuration: names of attributes, and positions in lists."""

Number = int | float
Changes = dict[Path, Number]
Pairs = dict[str, tuple[Any, Any]]
"""What is wrong: its name -> what was found and what was wanted."""

Look = dict[str, Number]
"""`name of a tensor[axis]` -> its size there, and `path.attribute` -> the number that the module holds."""

_MOST_BUILDS = 200
_MORE_BUILDS = 60  # once all shapes are right, to get the numbers right as well


def sizes_of(model: nn.Module) -> Look:
    """The size of every axis of everything in the model's state, and the length of every list of modules."""
    lengths = {f"len({n})": len(m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    return lengths | {f"{n}[{d}]": s for n, t in model.state_dict().items() for d, s in enumerate(t.shape)}


def numbers_of(model: nn.Module) -> Look:
    """The numbers that modules hold as attributes."""
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float)
    }


def uneven(model: nn.Module, config: Any) -> str:
    """Why no configuration can describe the model: two layers that are alike in it differ. Empty where none do."""
    base = built(type(model), config)
    if base is None:
        return f"{type(model).__name__} cannot be built from its configuration"
    before, now = sizes_of(base), sizes_of(model)
    lists = {value for path, value in leaves(config) if isinstance(path[-1], int)}
    seen: dict[tuple[str, Number], tuple[str, Number]] = {}
    for key, size in now.items():
        # A list in the configuration may give every layer its own size.
        if key not in before or before[key] in lists:
            continue
        alike = re.sub(r"\.\d+\.", ".*.", key), before[key]
        other, theirs = seen.setdefault(alike, (key, size))
        if theirs != size:
            return f"{other} is {theirs} and {key} is {size}, and one field of the configuration sets both"
    return ""


def configurations(model: nn.Module, config: Any) -> Iterator[Any]:
    """Configurations that give exactly the model's shapes, those that also give its modules' numbers first.

    A best-first search from `config`: the fields that may change are those that hold a size which is wrong so far, or
    divide it (heads of a projection), or are unset; a field without influence is not tried again. The search also
    begins with those fields that the class would read if they were there (`head_dim` of Qwen2). Cost: at most 200
    instances on the meta device, which hold no weights, and one for each name that is not there.
    """
    sizes, numbers = sizes_of(model), numbers_of(model)
    order, builds, most = count(), 0, _MOST_BUILDS
    seen: set[frozenset[tuple[Path, Number]]] = {frozenset()}
    idle: set[Path] = set()
    queue: list[tuple[int, int, int, Changes, Any, Pairs, Pairs]] = []
    almost: list[tuple[int, int, Any]] = []

    def push(changes: Changes, changed: Any, parent: tuple[Pairs, Pairs] | None) -> bool:
        """Build and queue; False where the last change has no influence on what is built."""
        candidate = built(type(model), changed)
        if candidate is None:
            return True
        pairs = _wrong(sizes_of(candidate), sizes), _wrong(numbers_of(candidate), numbers)
        if pairs == parent:
            return False
        heapq.heappush(queue, (sum(map(len, pairs)), len(changes), next(order), changes, changed, *pairs))
        return True

    push({}, config, None)
    if absent := _absent(model, config):
        extended = config
        for path, value in absent.items():
            extended = _set(extended, path, value) or extended
        push(absent, extended, None)
    while queue and builds < most:
        far, _, place, changes, current, *pairs = heapq.heappop(queue)
        if not far:
            yield current
        elif not pairs[0]:
            almost.append((far, place, current))
            most = min(most, builds + _MORE_BUILDS)
        for path, value in _proposals(current, {*pairs[0].values(), *pairs[1].values()}):
            following = {**changes, path: value}
            key = frozenset(following.items())
            if path in changes or path in idle or key in seen or builds >= most:
                continue
            seen.add(key)
            if (changed := _set(current, path, value)) is not None:
                builds += 1
                if not push(following, changed, (pairs[0], pairs[1])):
                    idle.add(path)
    # Modules may hold numbers that nothing reads.
    yield from (current for _, _, current in sorted(almost, key=lambda found: found[:2]))


def built(kind: type[nn.Module], config: Any) -> nn.Module | None:
    """An instance without weights; None where the class cannot be built from this configuration."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return kind(copy.deepcopy(config))
    except refusals():
        return None


def refusals() -> tuple[type[Exception], ...]:
    """What a class raises that cannot be built from a configuration or read from a folder."""
    errors: Any = importlib.import_module("huggingface_hub.errors")
    strict: type[Exception] | None = getattr(errors, "StrictDataclassError", None)
    return (*FAILURES, ArithmeticError, OSError, *(() if strict is None else (strict,)))


def leaves(config: Any) -> Iterator[tuple[Path, Number | None]]:
    """Every number of a configuration, of those within it and of its lists; and its unset fields."""
    for name, value in vars(config).items():
        if name.startswith("_"):
            continue
        if type(value) in (int, float) or value is None:
            yield (name,), value
        elif isinstance(value, list | tuple) and all(type(v) is int for v in value):
            yield from (((name, i), v) for i, v in enumerate(value))
        elif hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from (((name, *path), v) for path, v in leaves(value))


def differences(before: Any, after: Any) -> dict[str, tuple[Number | None, Number | None]]:
    """Fields (`text_config.intermediate_size`) whose numbers differ between two configurations, with both numbers."""
    was, now = dict(leaves(before)), dict(leaves(after))
    return {_dotted(p): (was.get(p), n) for p, n in now.items() if was.get(p) != n}


def _wrong(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Pairs:
    """What differs, as (found, wanted); 0 for what one of them lacks."""
    return {
        k: (found.get(k, 0), wanted.get(k, 0)) for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k)
    }


def _absent(model: nn.Module, config: Any) -> Changes:
    """Fields that the configuration lacks and the class reads all the same, as the model's modules hold them.

    Only whole numbers that all of the class' own modules agree on; that one is read shows in twice its value.
    """
    held: dict[str, set[int]] = {}
    for module in model.modules():
        if not type(module).__module__.startswith("torch."):
            for name, value in vars(module).items():
                if type(value) is int and value > 0 and not name.startswith("_"):
                    held.setdefault(name, set()).add(value)
    base = built(type(model), config)
    found: Changes = {}
    for where, owner in _owners(config):
        for name, values in held.items():
            if base is None or len(values) > 1 or hasattr(owner, name):
                continue
            path, value = (*where, name), min(values)
            changed = _set(config, path, 2 * value)
            other = None if changed is None else built(type(model), changed)
            if other is not None and sizes_of(other) != sizes_of(base):
                found[path] = value
    return found


def _owners(config: Any) -> Iterator[tuple[Path, Any]]:
    """A configuration and those within it, with where they stand."""
    yield (), config
    for name, value in vars(config).items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from (((name, *path), owner) for path, owner in _owners(value))


def _proposals(config: Any, pairs: set[tuple[Any, Any]]) -> list[tuple[Path, Number]]:
    """Fields that may be behind wrong sizes, with the values that would set them right."""
    wrong = [(a, b) for a, b in pairs if type(a) is int and type(b) is int and a > b > 0]
    direct: list[tuple[Path, Number]] = []
    indirect: list[tuple[Path, Number]] = []
    for path, value in leaves(config):
        if value is None:
            # An unset number of layers would be tried with the size of a layer.
            if not re.search(r"layer|token|depth|blocks", str(path[-1])):
                indirect += [(path, b) for _, b in wrong]
        elif type(value) is float:
            # A tolerance that was put right with a width, or the ratio of two widths.
            direct += [(path, b) for a, b in pairs if type(b) is float and a == value]
            indirect += [(path, value * b / a) for a, b in wrong if 0.25 <= value <= 64]
        else:
            direct += [(path, b) for a, b in wrong if a == value]
            indirect += [(path, int(value * b // a)) for a, b in wrong if a != value > 1 and value * b % a == 0]
    return list(dict.fromkeys(sorted(direct, key=str) + sorted(indirect, key=str)))


def _dotted(path: Path) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def _get(config: Any, path: Path) -> Any:
    for step in path:
        config = config[step] if isinstance(step, int) else getattr(config, step)
    return config


def _set(config: Any, path: Path, value: Number) -> Any:
    """A copy of the configuration with one number changed; None where the configuration refuses it."""
    config = copy.deepcopy(config)
    owner, (*way, last) = config, path
    try:
        if isinstance(last, int):
            *way, name = way
            owner = _get(owner, tuple(way))
            old = getattr(owner, str(name))
            setattr(owner, str(name), type(old)(value if i == last else v for i, v in enumerate(old)))
        else:
            setattr(_get(owner, tuple(way)), last, value)
    except refusals():
        return None
    return config
