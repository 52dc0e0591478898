"""Atoms: the identities that flow through a network, what ties them together and what freezes them.

Every position along every axis of every parameter and buffer is one atom, a positive integer. A *plane* says for each
element of a tensor to which atom it belongs (0: to none, so it is never removed). Planes are kept small: an axis along
which the atoms do not change has size 1. A tensor may carry several planes (a weight carries one per axis).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Plane = Int[Tensor, "..."]


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter, a buffer, or (`dim` is None) of a size that a module keeps as a plain integer."""

    name: str
    dim: int | None
    start: int
    size: int


def varying(plane: Plane) -> tuple[int, ...]:
    """The axes along which atoms change."""
    return tuple(d for d, size in enumerate(plane.shape) if size > 1)


def compress(plane: Plane) -> Plane:
    """The same plane with size 1 wherever the atoms do not change. One pass over the elements at most per axis."""
    for d in range(plane.dim()):
        size = plane.shape[d]
        if size > 1 and (plane.stride(d) == 0 or bool((plane == plane.narrow(d, 0, 1)).all())):
            plane = plane.narrow(d, 0, 1)
    return plane.clone() if 0 in plane.stride() else plane


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
        self._ties: list[tuple[Tensor, Tensor]] = []
        self._frozen: list[tuple[Tensor, int]] = []
        self._boxes: list[Plane] = []

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
        a, b = torch.broadcast_tensors(a, b)
        differ = a != b
        if not bool(differ.any()):
            return
        a, b = a[differ], b[differ]
        alone = (a == 0) | (b == 0)
        if bool(alone.any()):
            self.freeze(torch.cat([a[alone], b[alone]]), reason)
            a, b = a[~alone], b[~alone]
        if a.numel():
            self._ties.append((a, b))

    def freeze(self, plane: Plane, reason: str) -> None:
        """No atom of this plane may be removed."""
        atoms = plane[plane > 0].unique()
        if atoms.numel():
            if not self.reasons or self.reasons[-1] != reason:
                self.reasons.append(reason)
            self._frozen.append((atoms, len(self.reasons) - 1))

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

    def solve(self) -> tuple[Int[Tensor, "atoms"], Bool[Tensor, "atoms"]]:
        """`(label, removable)` per atom: equal labels are one unit; the smallest atom of a component is its label."""
        while True:
            labels = self._components()
            removable = torch.ones(self._count, dtype=torch.bool)
            removable[0] = False
            for atoms, _ in self._frozen:
                removable[labels[atoms]] = False
            removable = removable[labels]
            before = len(self._ties) + len(self._frozen)
            for plane in self._boxes:
                self._make_rectangular(torch.where(removable[plane], labels[plane], 0))
            if len(self._ties) + len(self._frozen) == before:
                return labels, removable

    def why(self, labels: Int[Tensor, "atoms"]) -> dict[int, str]:
        """The first reason that froze each frozen component, by label."""
        found: dict[int, str] = {}
        for atoms, reason in self._frozen:
            for label in labels[atoms].unique().tolist():
                found.setdefault(label, self.reasons[reason])
        return found

    def _components(self) -> Int[Tensor, "atoms"]:
        # Minimum-label propagation with pointer jumping: O(log n) vectorized rounds instead of a union-find in Python.
        labels = torch.arange(self._count)
        if not self._ties:
            return labels
        if len(self._ties) > 1:
            self._ties = [(torch.cat([a for a, _ in self._ties]), torch.cat([b for _, b in self._ties]))]
        a, b = self._ties[0]
        while True:
            la, lb = labels[a], labels[b]
            if torch.equal(la, lb):
                return labels
            low = torch.minimum(la, lb)
            labels.scatter_reduce_(0, la, low, "amin")
            labels.scatter_reduce_(0, lb, low, "amin")
            while not torch.equal(jumped := labels[labels], labels):
                labels = jumped

    def _make_rectangular(self, labels: Plane) -> None:
        labels = compress(labels)
        dims = varying(labels)
        if len(dims) < 2:
            return
        # Of all axes along which a removal could run, the one that leaves most units (head channels, not heads).
        keep = max(dims, key=lambda d: self._classes(labels, d))
        others = [d for d in dims if d != keep]
        self.tie(labels, first(labels, others), "part of a reshaped axis is fixed")

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
    """Which of `others` speaks of the same axes as `plane`: most common axes, then most elements."""
    best = max(range(len(others)), key=lambda i: (overlap(plane, others[i]), others[i].numel()), default=None)
    return None if best is None or overlap(plane, others[best]) == 0 else best
