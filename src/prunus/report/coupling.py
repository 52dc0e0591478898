"""Which axes of a network are coupled, what each group governs, and the chain of operations that ties two of them.

Links (two axes that one operation tied) are the edges of a graph. Within a group they make a tree from the first
weight that produces its units, found by breadth-first search, so that every chain shown is a shortest one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

from prunus.core.errors import SpecError, UnknownNameError
from prunus.core.groups import Group, Member

Axis = tuple[str, int | None]
"""A parameter, buffer or integer attribute by its full name, and the axis (None: all of it)."""


Tied = tuple[Axis, Axis, str]
"""Two axes that an operation tied, and that operation: what `prunus.graph` records as a link."""


class Tie(NamedTuple):
    """One step of a chain: the operation that ties `child` to `parent`."""

    parent: Axis
    child: Axis
    operation: str


@dataclass(frozen=True)
class Weight:
    """A parameter of the network.

    Attributes:
        shape: as it lies in the model.
        macs: multiply-accumulates of one sample.
        frozen: why its output axis (or a part of it) stays whole; None where it need not.
    """

    name: str
    shape: tuple[int, ...]
    macs: int
    frozen: str | None

    @property
    def params(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Chain:
    """How two axes are tied: `ties` lead from `start` to `end`; none where they are the same axis.

    Attributes:
        group: the name of the group that both belong to; None where they meet along axes that stay whole.
        known: False where the engine recorded no operation between them, though they are one group.
    """

    group: str | None
    start: Axis
    end: Axis
    ties: tuple[Tie, ...]
    known: bool = True


def axes_of(group: Group) -> tuple[Axis, ...]:
    """Every axis that a group owns positions of: its members, then the integers that repeat their sizes."""
    return (*((m.param, m.dim) for m in group.members), *((m.param, None) for m in integers(group)))


def integers(group: Group) -> tuple[Member, ...]:
    """The integer attributes of modules that are repaired when units of the group go."""
    return tuple(getattr(group, "sizes", ()))


@dataclass(frozen=True)
class Coupling:
    """A network's groups and ties.

    Attributes:
        network: what it is called.
        weights: the parameters in the order in which they are first used.
        groups: as `prunus.graph.trace` returns them.
        links: what was tied directly with what.
        fixed_macs: multiply-accumulates of products without parameters.
        aliases: other names of shared parameters -> the name used here.
    """

    network: str
    weights: tuple[Weight, ...]
    groups: tuple[Group, ...]
    links: tuple[Tied, ...] = field(default=(), repr=False)
    fixed_macs: int = 0
    aliases: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def params(self) -> int:
        """All parameters."""
        return sum(w.params for w in self.weights)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return sum(w.macs for w in self.weights) + self.fixed_macs

    @cached_property
    def by_name(self) -> dict[str, Weight]:
        """The parameters by name."""
        return {w.name: w for w in self.weights}

    @cached_property
    def neighbours(self) -> dict[Axis, list[tuple[Axis, str]]]:
        """The axes tied directly to an axis, and the operations."""
        found: dict[Axis, list[tuple[Axis, str]]] = {}
        for one, other, operation in self.links:
            found.setdefault(one, []).append((other, operation))
            found.setdefault(other, []).append((one, operation))
        return found

    @cached_property
    def owners(self) -> dict[str, list[Group]]:
        """Parameter, buffer or integer -> the groups that own positions of it."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            for name in dict.fromkeys(name for name, _ in axes_of(group)):
                found.setdefault(name, []).append(group)
        return found

    def tree(self, group: Group) -> tuple[Tie, ...]:
        """The ties that connect a group, from its first producer outwards; parents come before their children."""
        return self._trees[group.name]

    @cached_property
    def _trees(self) -> dict[str, tuple[Tie, ...]]:
        found = {}
        for group in self.groups:
            axes = axes_of(group)
            found[group.name] = tuple(spread(self.neighbours, axes[:1], set(axes).__contains__).values())
        return found

    def governs(self, group: Group) -> tuple[int, int]:
        """(parameters, MACs) that would go with all units of a group.

        A weight lies in one group along its output and in another along its input, so shares of groups overlap.
        """
        kept: dict[str, float] = {}
        for m in group.members:
            weight = self.by_name.get(m.param)
            if weight is None or m.buffer:
                continue
            size = 1 if m.dim is None else weight.shape[m.dim]
            own = 1 if m.dim is None else group.units if m.index is None else m.index.numel()
            kept[m.param] = kept.get(m.param, 1.0) * (1.0 - own / size)
        shares = [(self.by_name[name], 1.0 - left) for name, left in kept.items()]
        return round(sum(w.params * s for w, s in shares)), round(sum(w.macs * s for w, s in shares))

    def named(self, text: str) -> str:
        """The parameter, buffer or integer that a user means; a module stands for its weight.

        Raises:
            UnknownNameError: there is none of that name.
        """
        known = {**dict.fromkeys(self.by_name), **dict.fromkeys(self.owners)}
        for name in (text, f"{text}.weight"):
            if (found := self.aliases.get(name, name)) in known:
                return found
        raise UnknownNameError("parameter", text, known)

    def ways(self, name: str) -> list[Chain]:
        """For every group that a parameter belongs to, the chain from the group's first producer to it."""
        return [
            self._chain(group.name, self._route(group, axes_of(group)[:1], [axis]), axes_of(group)[0], axis)
            for group in self.owners.get(name, [])
            for axis in dict.fromkeys(a for a in axes_of(group) if a[0] == name)
        ]

    def between(self, one: str, other: str) -> list[Chain]:
        """The shortest chain between two parameters in every group that both belong to.

        Where they share no group, the chain along axes that stay whole, if there is one.

        Raises:
            SpecError: the two are the same.
        """
        if one == other:
            raise SpecError(f"{one} was named twice: name two parameters to see what ties them")
        found = []
        for group in self.owners.get(one, []):
            starts, ends = ([a for a in axes_of(group) if a[0] == name] for name in (one, other))
            if ends:
                found.append(self._chain(group.name, self._route(group, starts, ends), starts[0], ends[0]))
        if not found:
            reached = self._outside(one)
            end = next((axis for axis in reached if axis[0] == other), None)
            if end is not None:
                ties = _back(reached, end)
                found.append(Chain(None, ties[0].parent, end, ties))
        return found

    def to_whole(self, name: str) -> Chain | None:
        """The chain from a parameter without a group to the nearest weight whose output is known to stay whole."""
        reached = self._outside(name)
        for end in reached:
            weight = self.by_name.get(end[0])
            if weight is not None and weight.frozen is not None and end[0] != name:
                ties = _back(reached, end)
                return Chain(None, ties[0].parent, end, ties)
        return None

    def _outside(self, name: str) -> dict[Axis, Tie]:
        """What the axes of a parameter that no group owns are tied to."""
        owned = {axis for group in self.groups for axis in axes_of(group)}
        starts = [axis for axis in self.neighbours if axis[0] == name and axis not in owned]
        return spread(self.neighbours, starts, lambda axis: axis not in owned)

    def _route(self, group: Group, starts: Sequence[Axis], ends: Sequence[Axis]) -> tuple[Tie, ...] | None:
        if set(starts) & set(ends):
            return ()
        reached = spread(self.neighbours, starts, set(axes_of(group)).__contains__)
        routes = [_back(reached, end) for end in ends if end in reached]
        return min(routes, key=len) if routes else None

    @staticmethod
    def _chain(group: str, ties: tuple[Tie, ...] | None, start: Axis, end: Axis) -> Chain:
        if ties:
            return Chain(group, ties[0].parent, ties[-1].child, ties)
        return Chain(group, start, end, (), known=ties is not None)

    @property
    def frozen(self) -> dict[str, list[str]]:
        """Reason -> the weights whose output axis stays whole because of it."""
        found: dict[str, list[str]] = {}
        for weight in self.weights:
            if weight.frozen is not None:
                found.setdefault(weight.frozen, []).append(weight.name)
        return found


def spread(
    neighbours: Mapping[Axis, Iterable[tuple[Axis, str]]], starts: Sequence[Axis], inside: Callable[[Axis], bool]
) -> dict[Axis, Tie]:
    """Breadth-first from `starts`: axis -> the tie by which it was reached, in that order."""
    reached: dict[Axis, Tie] = {}
    seen = set(starts)
    queue = deque(starts)
    while queue:
        parent = queue.popleft()
        for child, operation in neighbours.get(parent, ()):
            if child not in seen and inside(child):
                seen.add(child)
                reached[child] = Tie(parent, child, operation)
                queue.append(child)
    return reached


def _back(reached: Mapping[Axis, Tie], end: Axis) -> tuple[Tie, ...]:
    """The ties that led to `end`, first to last."""
    ties: list[Tie] = []
    while end in reached:
        ties.append(reached[end])
        end = ties[-1].parent
    return tuple(reversed(ties))


_WORDS = {
    "addmm": "matrix product",
    "mm": "matrix product",
    "bmm": "matrix product",
    "baddbmm": "matrix product",
    "matmul": "matrix product",
    "linear": "matrix product",
    "mul": "multiplication",
    "div": "division",
    "cat": "concatenation",
    "sub": "subtraction",
    "embedding": "look-up",
}


def in_words(operation: str) -> str:
    """`native_batch_norm in bn1` -> `batch norm in bn1`: the operation as it is called outside of ATen."""
    name, at, place = operation.partition(" in ")
    name = name.strip("_").removeprefix("native_")
    if name.startswith("scaled_dot_product"):
        name = "attention"
    name = name.removeprefix("cudnn_").removeprefix("miopen_")
    return _WORDS.get(name, name).replace("_", " ") + at + place


def reason_in_words(reason: str) -> str:
    """A reason for staying whole, with its operation as it is called outside of ATen."""
    parts = reason.split(": ")
    return ": ".join(in_words(part) if re.match(r"\w+ in ", part) else part for part in parts)


def axis_name(axis: Axis) -> str:
    """`fc.weight axis 1`; an integer attribute has no axis."""
    return axis[0] if axis[1] is None else f"{axis[0]} axis {axis[1]}"
