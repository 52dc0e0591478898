"""What a folder calls its tensors, and what its configuration says, once layers are gone."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prunus.core.errors import StructureError
from prunus.graph.depth.drop import names_after
from prunus.stream.shrunk import IN_MEMORY
from prunus.stream.skeleton import Skeleton

_LISTED = re.compile(r".*(layer|block|depth|pattern|rope).*")


def renumbered(skeleton: Skeleton, path: str, names: Sequence[str], stay: Sequence[int]) -> Callable[[str], str | None]:
    """What a tensor of the folder is called once layers are gone; None for those that go.

    Errors: `StructureError` where the folder's names do not tell the layers.
    """
    container = skeleton.model.get_submodule(path)
    own = {n.rpartition(".")[2]: [k.split(".") for k in skeleton.keys(n)] for n in names}
    longest = min((len(k) for keys in own.values() for k in keys), default=0)
    for at in range(longest):
        heads = {tuple(k[:at]) for keys in own.values() for k in keys}
        if len(heads) == 1 and all(k[at] == entry for entry, keys in own.items() for k in keys):
            head = heads.pop()
            break
    else:
        raise StructureError(f"the folder's tensors of {path} do not say which layer they belong to: {IN_MEMORY}")
    kept = names_after(container, stay)

    def moved(key: str) -> str | None:
        parts = key.split(".")
        if tuple(parts[:at]) != head or len(parts) <= at or parts[at] not in own:
            return key
        return ".".join([*parts[:at], kept[parts[at]], *parts[at + 1 :]]) if parts[at] in kept else None

    return moved


def configurations(config: Any, kept: Mapping[int, list[int]]) -> Iterator[Any]:
    """The configuration as `drop_` left it, then those in which lists of numbers lose layers too: as items, one for
    each layer, or as positions of layers.
    """
    yield config

    def items(value: list[Any]) -> list[Any]:
        stay = kept.get(len(value))
        return value if stay is None else [value[i] for i in stay]

    def places(value: list[Any]) -> list[Any]:
        stay = next(iter(kept.values()))
        return [stay.index(v) for v in value if v in stay] if all(type(v) is int for v in value) else value

    for change in (items, places):
        twin, changed = copy.deepcopy(config), False
        for owner in _owners(twin):
            for name, value in list(vars(owner).items()):
                numbers = isinstance(value, list | tuple) and value and all(type(v) in (int, float) for v in value)
                if numbers and _LISTED.fullmatch(name) and (new := change(list(value))) != list(value):
                    vars(owner)[name], changed = type(value)(new), True
        if changed:
            yield twin


def _owners(config: Any) -> Iterator[Any]:
    """A configuration and those within it."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _owners(value)
