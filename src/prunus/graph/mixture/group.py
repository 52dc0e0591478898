"""Experts as the units of a group: what goes with one of them, and the model in which it is never chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.core.groups import Group
from prunus.graph.depth.drop import entries_of
from prunus.graph.mixture.flow import Gate, aside
from prunus.graph.repair import read


class Count(NamedTuple):
    """An integer that a module keeps and that follows the number of experts.

    Attributes:
        target: its path (`layers.0.mlp.num_experts`).
        each: of so many experts it counts one (a number of experts per part: the number of parts).
        users: how many groups it speaks for; it only changes if all of them keep equally many.
    """

    target: str
    each: int = 1
    users: int = 1


@dataclass(frozen=True, eq=False)
class ExpertGroup(Group):
    """The experts of one router. Removing one is routing as if its logit were minus infinity (Lu et al. 2024,
    arXiv:2402.14800): the tokens that would go to it go to the best of those that stay.

    Zeros alone do not say this (the logit of a router's row of zeros is 0), so the proof of a compaction compares with
    the model in the context of `aside`.

    Attributes:
        scope: the path of the module that routes; empty for the model itself.
        gates: the tensors that decide which expert is chosen.
        lists: the paths of the lists of which the experts are entries.
        counts: the integers that repeat the number of experts.
        routed: whether a token uses a fixed number of experts, so that removing some saves no operations but the
            router's.
    """

    scope: str = ""
    gates: tuple[Gate, ...] = ()
    lists: tuple[str, ...] = ()
    counts: tuple[Count, ...] = ()
    routed: bool = True

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of the edits that drop experts from lists."""
        return tuple(entries_of(path) for path in self.lists)

    @property
    def steady(self) -> frozenset[str]:
        """The members that do as many multiply-accumulates for a token however many experts there are."""
        if not self.routed:
            return frozenset()
        return frozenset(m.param for m in self.members) - {g.tensor for g in self.gates}

    def aside(self, model: nn.Module, keep: Bool[Tensor, "units"]) -> AbstractContextManager[None]:
        """The context in which `model` never chooses the experts that are not kept."""
        return aside(model, self.scope, self.gates, keep.reshape(-1))


def recount(
    model: nn.Module, groups: Sequence[Group], masks: Mapping[str, Bool[Tensor, "..."]]
) -> Iterator[tuple[str, int, int]]:
    """`(attribute path, old value, new value)` of the integers that follow the experts that `masks` keep."""
    asked: dict[str, tuple[Count, list[int]]] = {}
    for group in groups:
        for count in group.counts if isinstance(group, ExpertGroup) and group.name in masks else ():
            asked.setdefault(count.target, (count, []))[1].append(int(masks[group.name].sum()))
    for target, (count, kept) in asked.items():
        if len(kept) == count.users and len(set(kept)) == 1:
            old, new = read(model, target), kept[0] // count.each
            if old != new:
                yield target, old, new


def some_experts(group: Group, kept: int, generator: torch.Generator) -> Bool[Tensor, "units"]:
    """A random mask that keeps this many, equally many in each part."""
    keep = torch.zeros(group.parts, group.units // group.parts, dtype=torch.bool)
    for part in keep:
        part[torch.randperm(part.numel(), generator=generator)[: kept // group.parts]] = True
    return keep.reshape(-1)


def turns(group: Group, kept: int, generator: torch.Generator) -> list[Bool[Tensor, "units"]]:
    """Masks that keep this many, equally many in each part, so that every expert is removed by one of them."""
    size = group.units // group.parts
    away = size - kept // group.parts
    orders = torch.stack([torch.randperm(size, generator=generator) for _ in range(group.parts)])
    masks = []
    for start in range(0, size, away):
        keep = torch.ones(group.parts, size, dtype=torch.bool)
        gone = (torch.arange(start, start + away) % size).expand(group.parts, -1)
        masks.append(keep.scatter_(1, orders.gather(1, gone), False).reshape(-1))
    return masks


def holder(model: nn.Module, target: str) -> tuple[Any, ...]:
    """Equal for two paths that lead to the same attribute of the same object."""
    path, _, name = target.rpartition(".")
    owner: Any = model
    for step in path.split(".") if path else ():
        owner = getattr(owner, step)
    return id(owner), name
