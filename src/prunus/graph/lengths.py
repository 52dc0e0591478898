"""What the lengths of axes demand of the atoms along them: to follow an integer, another axis, or to stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from prunus.graph.atoms import Plane, varying
from prunus.graph.sizes import Size

if TYPE_CHECKING:
    from prunus.graph.flow import Flow


class Lengths:
    """The lengths that the forward of one run asks for, and the atoms of the integers that modules keep."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.pending: list[int] | None = None
        """The integers given to the function that is running; None where they cannot be seen."""
        self._sizes: dict[str, Plane] = {}
        self._measured: set[str] = set()
        self._forbidden: dict[str, str] = {}

    def size_axis(self, target: str, size: int) -> Plane:
        """The atoms of an integer that a module keeps, `[size]`: as many of them stay as the integer becomes."""
        if target not in self._sizes:
            self._sizes[target] = self.flow.atoms.axis(target, None, size)
            if target in self._forbidden:
                self.flow.atoms.freeze(self._sizes[target], self._forbidden[target])
        return self._sizes[target]

    def forbid(self, size: Size, why: str) -> None:
        """What this integer measures must keep its length (what is a quotient must keep its value)."""
        if size.ratio is not None:
            with self.flow.paused():
                self._keep_ratio(*size.ratio)
            return
        for part in (*size.factors, *size.terms):
            if isinstance(part, Size):
                self.forbid(part, why)
        reason = f"{why} in {self.flow.where or 'the model'}"
        if size.target is not None and size.target not in self._sizes:
            self._forbidden.setdefault(size.target, reason)
        elif not size.derived and (atoms := size.atoms()) is not None:
            self.flow.atoms.freeze(atoms, reason)

    def compared(self, size: Size, other: object) -> None:
        """The forward found two numbers equal, so they have to remain so."""
        if self.flow.asleep or size.free():
            return
        with self.flow.paused():
            own = size.atoms()
            if own is None or (isinstance(other, Size) and other.free()):
                return
            theirs = other.atoms() if isinstance(other, Size) else None
            reason = f"a comparison in {self.flow.where or 'the model'}: the code expects {int(size)}"
            if theirs is None:
                self.flow.atoms.freeze(own, reason)
            else:
                self.flow.atoms.tie(own, theirs, reason)

    def counted(self, size: Size) -> None:
        """The forward computes with this number, so it has to remain, unless a norm can be put right."""
        if self.flow.asleep or size.free():
            return
        with self.flow.paused():
            along = [p for p in size.planes if p.shape[size.axis] > 1]
            if len(along) == 1 and self.flow.averaged(along[0]):
                return
            self.forbid(size, "the code computes with the number of positions")

    def sizes_of(self, values: Sequence[int]) -> list[int] | None:
        """The given integers as the running function received them (`Size`s among them); None where it is unknown."""
        if self.pending is None:
            return None
        given = [int(v) for v in self.pending]
        for i in range(len(given) - len(values) + 1):
            if given[i : i + len(values)] == list(values):
                return self.pending[i : i + len(values)]
        return None

    def control(self, out: Tensor, dim: int, size: int, grows: bool, made: bool = False) -> None:
        """Axis `dim` of `out` is as long as `size` says, wherever that came from."""
        planes = self.flow.planes_of(out)
        along = [p for p in planes if p.shape[dim] > 1]
        for plane in along:
            self.govern(plane, dim, size)
        if along or not isinstance(size, Size):
            return
        atoms = None if size.factors or size.terms or size.derived else self.measure(size)
        # Repeated along a new axis behind one along which atoms lie, it could shrink in two ways: the older one stays.
        new = made or not any(d < dim for p in planes for d in varying(p))
        if grows and new and atoms is not None and int(size) == out.shape[dim]:
            lying = [1] * out.dim()
            lying[dim] = int(size)
            self.flow.record(out, [*planes, atoms.reshape(lying)], self.flow.source_of(out))
        else:
            self.forbid(size, "the length of an axis that is fixed")

    def measure(self, size: Size) -> Plane | None:
        """The atoms along the axis that a size measures; new ones where an axis taken apart says only how many."""
        atoms = size.atoms()
        along = [p for p in size.planes if p.shape[size.axis] > 1]
        if atoms is None and len(along) == 1:
            atoms = self.flow.atoms.axis(f"length {len(self.flow.atoms.axes)}", -1, int(size))
            self.flow.atoms.follow(along[0], size.axis, atoms, f"a length in {self.flow.where or 'the model'}")
        return atoms

    def _keep_ratio(self, whole: Size, part: Size) -> None:
        """`whole // part` is used as a size: where one of the part goes, its share of the whole goes."""
        atoms, own = part.atoms(), whole.atoms()
        assert atoms is not None and own is not None
        self.flow.atoms.tie(
            atoms.repeat_interleave(int(whole) // int(part)),
            own,
            f"{whole.target} // {part.target} in {self.flow.where}",
        )

    def govern(self, plane: Plane, dim: int, size: int) -> None:
        """What varies along `dim` of a plane follows `size`, or is fixed if that is a number in the code."""
        reason = f"a size in {self.flow.where or 'the model'}"
        if isinstance(size, Size) and size.ratio is not None:
            self._keep_ratio(*size.ratio)
            size = int(size)
        if not isinstance(size, Size) and plane.numel() == 1:
            self.flow.atoms.freeze(plane, f"{reason}: the code says {size}")
        elif not isinstance(size, Size):
            self.flow.atoms.fix(plane, [dim], f"{reason}: the code says {size}")
        elif size.factors:
            factors = _as_it_lies(plane, dim, size.factors)
            split = plane.unflatten(dim, [int(f) for f in factors])
            self.flow.atoms.box(split)
            for i, factor in enumerate(factors):
                self.govern(split, dim + i, factor)
        elif size.terms:
            start = 0
            for term in size.terms:
                self.govern(plane.narrow(dim, start, int(term)), dim, term)
                start += int(term)
        elif not size.free():
            atoms = size.atoms()
            if atoms is None:
                self.flow.atoms.fix(plane, [dim], f"{reason}: a length that is fixed")
                return
            why = f"{reason}: {size.target or 'the length of another axis'}"
            if size.target is not None and varying(plane) == (dim,) and size.target not in self._measured:
                self._measured.add(size.target)
                self.flow.atoms.tie(plane.reshape(-1), atoms, why)
            else:
                self.flow.atoms.follow(plane, dim, atoms, why)


def _as_it_lies(plane: Plane, dim: int, factors: Sequence[int]) -> Sequence[int]:
    """The factors of a length in the order of the axes that were joined: `width * heads` may measure heads by widths.

    They are turned round where then more positions are one part: have the same atoms all along one of both axes.
    """

    def alike(order: Sequence[int]) -> int:
        split = plane.unflatten(dim, [int(f) for f in order])
        same = (d for d in (dim, dim + 1) if bool((split == split.narrow(d, 0, 1)).all()))
        return max((split.shape[d] for d in same), default=0)

    turned = factors[::-1]
    return turned if len(factors) == 2 and alike(turned) > alike(factors) else factors
