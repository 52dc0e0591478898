"""Atoms: the identities that flow through a network, what ties them together and what freezes them.

Every position along every axis of every parameter and buffer is one atom, a positive integer. A *plane* says for each
element of a tensor to which atom it belongs (0: to none, so it is never removed). Planes are kept small: an axis along
which the atoms do not change has size 1. A tensor may carry several planes (a weight carries one per axis).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Plane = Int[Tensor, "..."]


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter, a buffer, (`dim` is None) of a size that a module keeps as a plain integer, or (-1) of a
    length that only the forward knows."""

    name: str
    dim: int | None
    start: int
    size: int


def varying(plane: Plane) -> tuple[int, ...]:
    """The axes along which atoms change."""
    return tuple(d for d, size in enumerate(plane.shape) if size > 1)


def compress(plane: Plane) -> Plane:
    """The same plane with size 1 wherever the atoms do not change. At most one pass over the elements per axis."""
    for d in range(plane.dim()):  # first what is constant by construction, so that the passes are over less
        if plane.shape[d] > 1 and plane.stride(d) == 0:
            plane = plane.narrow(d, 0, 1)
    for d in range(plane.dim()):
        if plane.shape[d] > 1 and torch.equal(plane.select(d, 0), plane.select(d, 1)):
            head = plane.narrow(d, 0, 1)
            if plane.shape[d] == 2 or bool((plane == head).all()):
                plane = head
    return plane


def first(plane: Plane, dims: Iterable[int]) -> Plane:
    """The first slice along each of `dims`, kept as axes of size 1."""
    for d in dims:
        plane = plane.narrow(d, 0, 1)
    return plane


class Atoms:
    """The registry: creates atoms, collects ties and frozen atoms, and solves for connected components."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.reasons: list[str] = []
        self._starts: list[int] = []
        self._count = 1
        # What was noted but not looked at yet: planes that tie, planes that freeze, each with the place of its reason.
        self._new_ties: list[tuple[Tensor, Tensor, int]] = []
        self._new_frozen: list[tuple[Tensor, int]] = []
        none = torch.zeros(0, dtype=torch.long)
        self._ties = (none, none, none)
        self._frozen = (none, none)
        self._boxes: list[Plane] = []
        self._follow: list[tuple[Plane, int, Plane, str, bool]] = []

    def axis(self, name: str, dim: int | None, size: int) -> Int[Tensor, "size"]:
        """Fresh atoms for one axis."""
        start = self._count
        self.axes.append(Axis(name, dim, start, size))
        self._starts.append(start)
        self._count += size
        return torch.arange(start, start + size)

    def axis_of(self, atom: int) -> int:
        """Which entry of `axes` an atom belongs to."""
        return bisect_right(self._starts, atom) - 1

    def tie(self, a: Plane, b: Plane, reason: str) -> None:
        """Atoms at equal (broadcast) positions live and die together; an atom that meets none is frozen."""
        if a is not b:
            self._new_ties.append((*torch.broadcast_tensors(a, b), self._place(reason)))

    def freeze(self, plane: Plane, reason: str) -> None:
        """No atom of this plane may be removed."""
        self._new_frozen.append((plane, self._place(reason)))

    @property
    def noted(self) -> int:
        """How many planes were frozen since the last `solve`."""
        return len(self._new_frozen)

    def since(self, noted: int) -> str | None:
        """The first reason for freezing after so many."""
        return self.reasons[self._new_frozen[noted][1]] if len(self._new_frozen) > noted else None

    def _place(self, reason: str) -> int:
        if not self.reasons or self.reasons[-1] != reason:
            self.reasons.append(reason)
        return len(self.reasons) - 1

    def _look(self) -> int:
        """Take in what was noted, in one pass over all of it; how many ties and frozen atoms were new."""
        ends, alone = [t.reshape(-1) for t in self._ties], torch.zeros(0, dtype=torch.long)
        reasons = alone
        if self._new_ties:
            a = torch.cat([one.reshape(-1) for one, _, _ in self._new_ties])
            b = torch.cat([other.reshape(-1) for _, other, _ in self._new_ties])
            places, counts = (
                torch.tensor(v) for v in zip(*((p, t.numel()) for t, _, p in self._new_ties), strict=True)
            )
            which = torch.repeat_interleave(places, counts)
            differ = a != b
            a, b, which = a[differ], b[differ], which[differ]
            single = (a == 0) | (b == 0)
            alone, reasons = (a + b)[single], which[single]
            fresh = [t[~single] for t in (a, b, which)]
            ends = [torch.cat(pair) for pair in zip(ends, fresh, strict=True)]
        frozen = [(plane[plane > 0], place) for plane, place in self._new_frozen]
        atoms = torch.cat([alone, *(t for t, _ in frozen)])
        reasons = torch.cat([reasons, *(torch.full_like(t, place) for t, place in frozen)])
        found = ends[0].numel() - self._ties[0].numel() + atoms.numel()
        self._ties = (ends[0], ends[1], ends[2])
        self._frozen = (torch.cat([self._frozen[0], atoms]), torch.cat([self._frozen[1], reasons]))
        self._new_ties, self._new_frozen = [], []
        return found

    def fix(self, plane: Plane, dims: Iterable[int], reason: str) -> Plane | None:
        """Forbid that `dims` change their size: what varies along them is tied, what varies along nothing else frozen.

        Returns the plane without the variation along `dims`, or None if nothing is left.
        """
        inner = [d for d in varying(plane) if d in set(dims)]
        if not inner:
            return plane
        if len(inner) == len(varying(plane)):
            self.freeze(plane, reason)
            return None
        head = first(plane, inner)
        self.tie(plane, head, reason)
        return head

    def box(self, plane: Plane) -> None:
        """Note that removals must leave this tensor rectangular (needed where atoms vary along several axes)."""
        if len(varying(plane)) > 1:
            self._boxes.append(plane)

    def follow(self, plane: Plane, dim: int, atoms: Int[Tensor, "size"], reason: str, in_order: bool = False) -> None:
        """The axis `dim` of a plane is as long as `atoms` are many: as many are removed along it as of these.

        They tie, unless they turn out to be the same units in another order and only the number counts. Where removals
        run along another axis of the plane, these atoms stay.
        """
        self.box(plane)
        self._follow.append((plane, dim, atoms, reason, in_order))

    def solve(self) -> tuple[Int[Tensor, "atoms"], Bool[Tensor, "atoms"]]:
        """`(label, removable)` per atom: equal labels are one unit; the smallest atom of a component is its label."""
        self._look()
        while True:
            labels = self._components()
            removable = torch.ones(self._count, dtype=torch.bool)
            removable[0] = False
            removable[labels[self._frozen[0]]] = False
            removable = removable[labels]
            for plane in self._boxes:
                self._make_rectangular(torch.where(removable[plane], labels[plane], 0))
            for plane, dim, atoms, reason, in_order in self._follow:
                theirs = torch.where(removable[atoms], labels[atoms], 0)
                self._follows(torch.where(removable[plane], labels[plane], 0), dim, theirs, reason, in_order)
            if not self._look():
                return labels, removable

    def why(self, labels: Int[Tensor, "atoms"]) -> Callable[[int], str | None]:
        """Tells the first reason that froze the component with this label."""
        none = len(self.reasons)
        first_of = torch.full((self._count,), none)
        first_of.scatter_reduce_(0, labels[self._frozen[0]], self._frozen[1], "amin")
        return lambda label: None if (i := int(first_of[label])) == none else self.reasons[i]

    def links(self) -> dict[tuple[int, int], str]:
        """Which axes (places in `axes`) were tied directly with each other, and the operation that first did it."""
        count = len(self.axes)
        sizes = torch.tensor([1, *(axis.size for axis in self.axes)])
        owner = torch.repeat_interleave(torch.arange(count + 1), sizes) - 1
        a, b, which = self._ties
        low, high = torch.minimum(owner[a], owner[b]), torch.maximum(owner[a], owner[b])
        pairs, place = torch.unique(low * count + high, return_inverse=True)
        first_of = torch.full_like(pairs, len(self.reasons)).scatter_reduce_(0, place, which, "amin")
        found = zip(pairs.tolist(), first_of.tolist(), strict=True)
        order = sorted((reason, *divmod(pair, count)) for pair, reason in found)
        return {(a, b): self.reasons[reason].partition(": ")[0] for reason, a, b in order if a != b}

    def _components(self) -> Int[Tensor, "atoms"]:
        # Minimum-label propagation with pointer jumping, on the ties that are left: O(log n) vectorized rounds.
        labels = torch.arange(self._count)
        a, b, _ = self._ties
        while a.numel():
            low, high = torch.minimum(a, b), torch.maximum(a, b)
            labels.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(jumped := labels[labels], labels):
                labels = jumped
            a, b = labels[a], labels[b]
            differ = a != b
            a, b = a[differ], b[differ]
        return labels

    def _make_rectangular(self, labels: Plane) -> None:
        labels = compress(labels)
        dims = varying(labels)
        if len(dims) < 2:
            return
        # Of all axes along which a removal could run, the one that leaves most units (head channels, not heads).
        keep = max(dims, key=lambda d: self._classes(labels, d))
        others = [d for d in dims if d != keep]
        self.tie(labels, first(labels, others), "part of a reshaped axis is fixed")

    def _follows(self, seen: Plane, dim: int, theirs: Int[Tensor, "size"], reason: str, in_order: bool) -> None:
        seen = compress(seen)
        if seen.shape[dim] == 1:
            if seen.numel() > 1 or not bool((theirs == seen).all()):
                self.freeze(theirs, reason)
        elif varying(seen) == (dim,):
            seen = seen.reshape(-1)
            if in_order or not torch.equal(seen.sort().values, theirs.sort().values):
                self.tie(seen, theirs, reason)

    @staticmethod
    def _classes(labels: Plane, keep: int) -> int:
        rows = labels.movedim(keep, 0).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        return int(high[low > 0].unique().numel())


def aligned(plane: Plane, ndim: int) -> Plane:
    """The plane as it broadcasts into a tensor of `ndim` axes."""
    return plane.reshape((1,) * (ndim - plane.dim()) + tuple(plane.shape))


def overlap(a: Plane, b: Plane) -> int:
    """Along how many axes both planes vary."""
    return len(set(varying(a)) & set(varying(b)))


def match(plane: Plane, others: Sequence[Plane]) -> int | None:
    """Which of `others` speaks of the same axes as `plane`: most common axes, then equal form, then most elements."""
    common = [overlap(plane, other) for other in others]
    if (most := max(common, default=0)) == 0:
        return None
    best = [i for i, count in enumerate(common) if count == most]
    if len(best) > 1:
        best = [i for i in best if alike(plane, others[i])] or best
    return max(best, key=lambda i: others[i].numel())


def alike(a: Plane, b: Plane) -> bool:
    """Whether the atoms of both repeat in the same way: which of two planes along one flattened axis is which."""
    return a.shape == b.shape and torch.equal(_form(a), _form(b))


def _form(plane: Plane) -> Int[Tensor, "elements"]:
    """For each element the first element with the same atom."""
    atoms, which = torch.unique(plane.reshape(-1), return_inverse=True)
    places = torch.arange(which.numel())
    return torch.full_like(atoms, which.numel()).scatter_reduce_(0, which, places, "amin")[which]
