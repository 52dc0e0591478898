"""Take whole entries out of the containers of a model, with the integers that repeat its depth.

A drop is a slice of a container: entries stay or go as positions along an axis do. Where a block is no entry, or its
container is read by index, all entries of the block itself go: what is left of it is an `nn.Identity`.

What a module or its configuration says about the depth follows: the number of layers, lists with one item per layer,
and the index that a layer carries itself (where it finds its part of a key-value cache).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.core.errors import StructureError
from prunus.core.groups import Group
from prunus.graph.depth.nothing import Nothing

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
EVERY = ".*"
"""Ends the target of an edit that drops entries: `layers.*` are the entries of `layers`."""

Change = tuple[dict[str, Any], str, Any]
"""A dictionary (of an object's attributes), a key of it and the key's new value."""

_STACK = r"(hidden|encoder|decoder|transformer)"
_COUNT = re.compile(rf"_?((n|num|number_of|total)_({_STACK}_)?|{_STACK}_)?(layers?|blocks?)|({_STACK}_)?depth|[nNlL]")
_LIST = re.compile(r".*(layer|block).*")
_INDEX = re.compile(r".*(layer|block|idx|index|depth|number).*")
_SETTINGS = re.compile(r".*(config|cfg|args|params|hparams|opts?)")


@dataclass(frozen=True, eq=False)
class BlockGroup(Group):
    """Blocks of one container that can be removed whole: with their parameters at zero the model computes what it
    computes without them.

    Every member belongs to one unit as a whole (`Member.unit`).

    Attributes:
        container: the path of the `Sequential`, `ModuleList` or `ModuleDict`, or of the module whose attributes the
            blocks are; empty for the model itself, and for branches.
        twins: further lists that are gone through together with it; a unit owns the same position of each.
        entries: `entries[u]` is the position of unit u in it.
        names: the full names of the units' modules.
        length: how many entries (with parameters) the container has, those that cannot be removed included.
        replaced: the units are not dropped but become `nn.Identity`s.
        additive: the units return zero, not their input, once their parameters are zero: the container adds them up.
        instead: by unit, the modules that are replaced if they are more or others than `names`, each with what
            `Nothing` returns in its place; None for an `nn.Identity`.
        ends: by unit, the parameters that all that a branch returns is proportional to; none where it has no such.
    """

    container: str = ""
    twins: tuple[str, ...] = ()
    entries: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    length: int = 0
    replaced: bool = False
    additive: bool = False
    instead: tuple[tuple[tuple[str, Any], ...], ...] = ()
    ends: tuple[tuple[str, ...], ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of the edits that drop blocks of this container and its twins."""
        return tuple(entries_of(path) for path in (self.container, *self.twins))


def entries_of(path: str) -> str:
    """The target of an edit that drops entries of the container at a path."""
    return f"{path}{EVERY}" if path else EVERY[1:]


def drops(target: str) -> bool:
    """Whether an edit of this target drops entries of a container."""
    return target == EVERY[1:] or target.endswith(EVERY)


def container_of(model: nn.Module, target: str) -> nn.Module:
    """The module whose entries an edit drops: a container, or a block that is emptied.

    Raises:
        StructureError: there is none in this model.
    """
    path = target.removesuffix(EVERY[1:]).removesuffix(".")
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise StructureError(f"the model has no module {path!r}, of which blocks were dropped") from error


def drop_(model: nn.Module, kept: Mapping[str, Sequence[int]], instead: Mapping[str, Any]) -> None:
    """Leave only these entries of containers (target of an edit -> kept positions), in place. Of the modules in
    `instead` a `Nothing` that returns this is left.

    Numbered names are given out anew (`layers.3` becomes `layers.2`, `expert_3` becomes `expert_2`), other names stay.
    Configurations are replaced by copies before they change (`unshare_`).
    """
    if kept:
        unshare_(model)
        apply_(plan(model, kept, instead))


def apply_(changes: Sequence[Change]) -> list[Change]:
    """Make the changes; returns those that undo them."""
    undo = [(owner, key, owner[key]) for owner, key, _ in changes]
    for owner, key, value in changes:
        owner[key] = value
    return undo[::-1]


def plan(model: nn.Module, kept: Mapping[str, Sequence[int]], instead: Mapping[str, Any] | None = None) -> list[Change]:
    """What leaves only these entries of containers (target of an edit -> kept positions). Nothing is changed."""
    instead = instead or {}
    containers = {target: container_of(model, target) for target in kept}
    found: list[Change] = []
    for target, stay in kept.items():
        container = containers[target]
        entries = list(container._modules.items())
        if target in instead or becomes_identity(container, stay):
            parent, _, key = target.removesuffix(EVERY).rpartition(".")
            way: nn.Module = Nothing(instead[target]) if target in instead else nn.Identity()
            found.append((model.get_submodule(parent)._modules, key, way.train(container.training)))
            continue
        if len(stay) == len(entries):
            continue
        left = {new: container._modules[old] for old, new in names_after(container, stay).items()}
        found.append((vars(container), "_modules", left))
        alike = [containers[other] for other, there in kept.items() if list(there) == list(stay)]
        for owner in _speakers(model, target, alike):
            found += _counts(owner, target, len(entries), stay)
        found += _indices([entry for _, entry in entries], stay)
    return found


def names_after(container: nn.Module, stay: Sequence[int]) -> dict[str, str]:
    """The name of every entry that stays -> its name once the others are gone."""
    names = list(container._modules)
    prefix = names[0].removesuffix("0") if names else ""
    numbered = names == [f"{prefix}{i}" for i in range(len(names))]
    return {names[old]: f"{prefix}{new}" if numbered else names[old] for new, old in enumerate(stay)}


def becomes_identity(module: nn.Module, stay: Sequence[Any]) -> bool:
    """Whether a module that keeps these entries is nothing but a way through."""
    return not stay and type(module) not in CONTAINERS


def _speakers(model: nn.Module, target: str, alike: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """The attributes that may repeat the number of entries: of the module that owns the container, and of the
    configurations from there up to the model.

    Above a container within another container's entry (a stage of several), a number of layers is another one, and
    beside containers of equal length that do not lose the same entries it may be theirs.
    """
    steps = target.removesuffix(EVERY[1:]).removesuffix(".").split(".")
    line = [model]
    for step in steps if steps != [""] else []:
        line.append(line[-1].get_submodule(step))
    above = line[:-1]
    while above and type(above[-1]) in CONTAINERS:
        above.pop()
    if not above:
        return []
    others = [
        m
        for m in above[-1].children()
        if isinstance(m, CONTAINERS) and len(m) == len(line[-1]._modules) and not any(m is other for other in alike)
    ]
    own = [] if others else [vars(above[-1])]
    nested = any(isinstance(m, CONTAINERS) for m in above)
    seen = {id(v): vars(v) for m in above if not nested for v in _settings(m).values()}
    return own + list(seen.values())


def _settings(module: nn.Module) -> dict[str, Any]:
    """The configuration objects that a module holds."""
    return {
        k: v
        for k, v in vars(module).items()
        if _SETTINGS.fullmatch(k) and hasattr(v, "__dict__") and not isinstance(v, nn.Module | Tensor | type)
        and not callable(v)
    }  # fmt: skip


def _counts(owner: dict[str, Any], target: str, length: int, stay: Sequence[int]) -> Iterator[Change]:
    """The number of layers and lists of one item per layer, where they hold for this container."""
    sides = ("encoder", "decoder")
    mine = [s for s in sides if s in target]
    said = [n for n in owner if _COUNT.fullmatch(n) and type(owner[n]) is int and owner[n] == length]
    for name in said:
        named = [s for s in sides if s in name]
        # A configuration of two stacks names the second one; the plain name is then the first one's.
        other = "decoder" in mine and not named and any("decoder" in n for n in owner if _COUNT.fullmatch(n))
        if (named and mine and not set(named) & set(mine)) or other or ("decoder" in named and not mine):
            continue
        yield owner, name, len(stay)
    for name, value in owner.items():
        if not (_LIST.fullmatch(name) and type(value) in (list, tuple) and len(value) == length):
            continue
        # Numbers may be positions of layers rather than one item for each.
        if all(type(v) in (str, bool) for v in value):
            yield owner, name, type(value)(value[i] for i in stay)


def _indices(entries: Sequence[nn.Module | None], stay: Sequence[int]) -> Iterator[Change]:
    """The index that every entry carries, wherever in it: an attribute that counts up over all entries."""
    held: list[dict[str, nn.Module]] = [dict(e.named_modules()) if e is not None else {} for e in entries]
    if len(entries) < 2:
        return
    for path, module in held[0].items():
        for name, value in vars(module).items():
            if type(value) is not int or not (_INDEX.fullmatch(name) or (value == 0 and len(entries) > 2)):
                continue
            if any(type(v := _at(m, path, name)) is not int or v != value + i for i, m in enumerate(held)):
                continue
            for new, old in enumerate(stay):
                yield vars(held[old][path]), name, value + new


def _at(modules: dict[str, nn.Module], path: str, name: str) -> Any:
    return vars(modules[path]).get(name) if path in modules else None


def unshare_(model: nn.Module) -> None:
    """Give a model configurations of its own, since another model may have been made from the same ones."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in _settings(module).items():
            vars(module)[name] = copy.deepcopy(value, memo)
