"""Repair the integers in which modules repeat the sizes of their tensors.

Rules are keyed on the names of attributes and on the axes they usually repeat, never on classes, and an attribute is
only touched where its value is the old size.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from prunus.core.errors import StructureError

Shapes = dict[str, dict[str, tuple[int, ...]]]
"""Module path -> tensor name -> shape."""

# attribute: the (tensor, axis) pairs whose size it may repeat, in the order of preference
_REPEATS: dict[str, tuple[tuple[str, int], ...]] = {
    "in_features": (("weight", 1),),
    "out_features": (("weight", 0),),
    "in_dim": (("weight", 1),),
    "out_dim": (("weight", 0),),
    "num_features": (("running_mean", 0), ("weight", 0)),
    "num_channels": (("weight", 0), ("running_mean", 0)),
    "num_parameters": (("weight", 0),),
    "embedding_dim": (("weight", 1),),
    "num_embeddings": (("weight", 0),),
    "input_size": (("weight_ih_l0", 1), ("weight_ih", 1)),
    "hidden_size": (("weight_hr_l0", 1), ("weight_hh_l0", 1), ("weight_hh", 1)),
    "proj_size": (("weight_hr_l0", 0),),
    "nf": (("weight", 1),),
    "nx": (("weight", 0),),
}


def shapes_of(model: nn.Module) -> Shapes:
    """The shapes of the tensors that each module owns, computed ones (parametrizations) included."""
    found: Shapes = {}
    for path, module in model.named_modules():
        own = {n: tuple(t.shape) for n, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}
        for name in parametrized(module):
            own[name] = tuple(getattr(module, name).shape)
        # Masks, spectral and weight normalization of the older kind compute `weight` in a hook, from these.
        for name in ("weight_orig", "weight_v"):
            if "weight" not in own and name in own:
                own["weight"] = own[name]
        found[path] = own
    return found


def parametrized(module: nn.Module) -> tuple[str, ...]:
    """The tensors of a module that parametrizations compute. (In exported graphs a plain module is called so.)"""
    own = getattr(module, "parametrizations", None)
    return tuple(own) if isinstance(own, nn.ModuleDict) else ()


def repairs(
    model: nn.Module, before: Shapes, after: Shapes, smaller: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """`(attribute path, old value, new value)` of every attribute that must follow the new shapes.

    Normalized parts (`num_groups`) leave as a whole, but for modules in `smaller`, whose parts become smaller.
    """
    for path, module in model.named_modules():
        old, new = before[path], after[path]
        if old == new:
            continue
        prefix = f"{path}." if path else ""
        for name, was, now in (*_kernel(module, old, new), *_simple(module, old, new), *_normalized(module, old, new)):
            if was != now and not (name == "num_groups" and path in smaller):
                yield prefix + name, was, now


def _integer(module: nn.Module, name: str) -> int | None:
    value = vars(module).get(name)
    return value if type(value) is int else None


def _simple(module: nn.Module, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    for name, places in _REPEATS.items():
        value = _integer(module, name)
        for tensor, axis in places:
            if value is not None and len(old.get(tensor, ())) > axis and old[tensor][axis] == value:
                yield name, value, new[tensor][axis]
                break


def _kernel(module: nn.Module, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Convolutions: `[out, in/groups, ...]`, or `[in, out/groups, ...]` where `transposed`."""
    groups = _integer(module, "groups")
    if groups is None or len(old.get("weight", ())) < 3:
        return
    (first, second), (first_now, second_now) = old["weight"][:2], new["weight"][:2]
    transposed = bool(getattr(module, "transposed", False))
    per_group = first // groups if transposed else second
    # One channel per group: the groups went with the channels. Otherwise their number stays.
    now = groups * first_now // first if per_group == 1 and groups > 1 else groups
    yield "groups", groups, now
    sizes = (("in_channels", first, first_now), ("out_channels", second * groups, second_now * now))
    if not transposed:
        sizes = (("out_channels", first, first_now), ("in_channels", second * groups, second_now * now))
    for name, was, size in sizes:
        if _integer(module, name) == was:
            yield name, was, size


def _normalized(module: nn.Module, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple) and old.get("weight") == shape:
        yield "normalized_shape", shape, new["weight"]
    parts = _integer(module, "num_groups")
    channels = _integer(module, "num_channels")
    if parts is not None and channels is not None and old.get("weight") == (channels,):
        yield "num_groups", parts, parts * new["weight"][0] // channels


_INDEXED = re.compile(r"(.*)\[(\d+)\]")


def _holder(model: nn.Module, target: str) -> tuple[dict[str, Any], str, int | None]:
    """The namespace that holds an attribute, its name there, and the index if the target is an entry of a sequence.

    A target is the path of a module's attribute (`layer1.0.conv1.groups`, `attn.sizes[1]`), or of an attribute of a
    plain object that a module holds (`config.num_heads`).
    """
    found = _INDEXED.fullmatch(target)
    path, index = (found[1], int(found[2])) if found else (target, None)
    parts = path.split(".")
    module = model
    while len(parts) > 1 and parts[0] in module._modules and (child := module._modules[parts[0]]) is not None:
        module, parts = child, parts[1:]
    names = vars(module)
    if len(parts) == 2 and isinstance(inner := getattr(names.get(parts[0]), "__dict__", None), dict):
        names, parts = inner, parts[1:]
    if len(parts) != 1:
        raise StructureError(f"the model has no module {path.rpartition('.')[0]!r}, which {target!r} names")
    if parts[0] not in names:
        raise StructureError(f"{type(module).__name__} has no attribute {target!r}")
    return names, parts[0], index


def read(model: nn.Module, target: str) -> Any:
    """The value of an attribute named by its path."""
    names, name, index = _holder(model, target)
    if index is None:
        return names[name]
    if not isinstance(names[name], tuple | list) or index >= len(names[name]):
        raise StructureError(f"{target!r} names no entry of {names[name]!r}")
    return names[name][index]


def write_(model: nn.Module, target: str, value: Any) -> None:
    """Set an attribute named by its path."""
    assert not isinstance(value, Tensor)
    names, name, index = _holder(model, target)
    if index is None:
        names[name] = value
    else:
        read(model, target)
        names[name] = type(names[name])([*names[name][:index], value, *names[name][index + 1 :]])
