"""Groups and spaces that need no model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.core.groups import Group, Member


def element(name: str, *shape: int) -> Group:
    """A weight of this shape, each entry a unit."""
    rows = shape[0]
    columns = int(torch.Size(shape[1:]).numel())
    return Group(name, (rows, columns), (Member(name),), weight=shape, kind="weight")


def channels(name: str, units: int, **demands: int) -> Group:
    """Units of a layer, with what the group demands of a selection."""
    return Group(name, (units,), (Member(name, 0),), weight=(units, 3, 3, 3), **demands)


def space_of(*groups: Group) -> dict[str, Group]:
    return {g.name: g for g in groups}


def random_scores(space: Mapping[str, Group], seed: int = 0, levels: int = 0) -> dict[str, Tensor]:
    """Normal scores, or whole numbers below `levels`, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randint(levels, g.shape, generator=generator).float()
        if levels
        else torch.randn(g.shape, generator=generator)
        for n, g in space.items()
    }
