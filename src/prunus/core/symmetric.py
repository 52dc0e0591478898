"""A symmetric matrix of which half is kept, and what stands in its place when it is factored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PANEL = 256
"""Columns of a panel."""
ENTRIES = 1 << 22
"""How many numbers of a product are made at a time."""


class Factored(NamedTuple):
    """What a matrix was factored with: the damping asked for and that used, and which of its diagonal was zero."""

    asked: float
    used: float
    dead: Bool[Tensor, "n"]


class Symmetric:
    """A symmetric matrix in float64, kept from the top down to its diagonal, in panels of columns.

    Attributes:
        panels: `[stop, columns]` each: the rows above `stop` of the columns that end there.
        factored: set by who puts a triangular factor into its place; None while it is itself.
        corners: of a factor that was narrowed, blocks on its diagonal in float64, and which; empty before.

    Memory: width^2 / 2 + 128 width numbers.
    """

    def __init__(self, panels: Iterable[Tensor]) -> None:
        self.panels = list(panels)
        self.factored: Factored | None = None
        self.corners: list[tuple[slice, Tensor]] = []

    @classmethod
    def zeros(cls, width: int, device: torch.device | str = "cpu") -> Symmetric:
        """Nothing yet."""
        sizes = [(s.stop, s.stop - s.start) for s in spans(width)]
        return cls(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes)

    @classmethod
    def of(cls, matrix: Float[Tensor, "n n"]) -> Symmetric:
        """A copy of a matrix that is symmetric."""
        made = cls.zeros(len(matrix), matrix.device)
        for span, panel in made.spans():
            panel.copy_(matrix[: span.stop, span])
        return made

    @property
    def width(self) -> int:
        """Rows, and columns."""
        return len(self.panels[-1])

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.panels[-1].device

    def spans(self) -> Iterator[tuple[slice, Tensor]]:
        """The panels and which columns they hold."""
        return zip(spans(self.width), self.panels, strict=True)

    def add_products_(self, x: Float[Tensor, "samples n"]) -> Symmetric:
        """Add x^T x, some rows at a time. Cost: samples * width^2 FLOPs, half of a whole product's."""
        for some in x.split(max(PANEL, ENTRIES // self.width)):
            wide = some.double()
            for span, panel in self.spans():
                panel.addmm_(wide[:, : span.stop].T, wide[:, span])
        return self

    def plus(self, other: Symmetric) -> Symmetric:
        """The sum, in memory of its own."""
        return Symmetric(a + b for a, b in zip(self.panels, other.panels, strict=True))

    def div_(self, by: int | float) -> Symmetric:
        """Divide it, in its place."""
        for panel in self.panels:
            panel.div_(by)
        return self

    def clone(self) -> Symmetric:
        """A copy of a matrix that is not factored."""
        assert self.factored is None
        return Symmetric(p.clone() for p in self.panels)

    def diagonal(self) -> Float[Tensor, "n"]:
        """Its diagonal, a copy."""
        return torch.cat([p[s].diagonal() for s, p in self.spans()])

    def add_to_diagonal_(self, level: float) -> None:
        """Add a number to every entry of the diagonal."""
        for span, panel in self.spans():
            panel[span].diagonal().add_(level)

    def whole(self) -> Float[Tensor, "n n"]:
        """All of it, a copy of a matrix that is not factored."""
        assert self.factored is None
        made = torch.empty(self.width, self.width, dtype=torch.float64, device=self.device)
        for span, panel in self.spans():
            made[: span.stop, span] = panel
            made[span, : span.start] = panel[: span.start].T
        return made

    def finite(self) -> bool:
        """Whether it holds neither NaN nor infinite numbers (nor any whose sum is)."""
        return all(bool(p.sum().isfinite()) for p in self.panels)

    def narrow_(self, step: int) -> None:
        """Let a factor's numbers be float32, but for blocks of `step` on its diagonal; panel by panel, in half the
        memory.
        """
        assert self.factored is not None
        if not self.corners:
            self.corners = [(span, self.corner(span)) for span in spans(self.width, step)]
            for at, panel in enumerate(self.panels):
                self.panels[at] = panel.float()

    def upper(self, rows: slice, columns: slice) -> Iterator[tuple[slice, Tensor]]:
        """What the panels hold of some columns, and of these rows: which columns, and a view of `[rows, columns]`."""
        for span, panel in self.spans():
            start, stop = max(span.start, columns.start), min(span.stop, columns.stop)
            if start < stop:
                yield slice(start, stop), panel[rows, start - span.start : stop - span.start]

    def above(self, rows: slice, columns: slice, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
        """Rows that end where the columns begin, or before."""
        made = torch.empty(rows.stop - rows.start, columns.stop - columns.start, dtype=dtype, device=self.device)
        for mine, part in self.upper(rows, columns):
            made[:, mine.start - columns.start : mine.stop - columns.start] = part
        return made

    def corner(self, span: slice) -> Float[Tensor, "b b"]:
        """A block on the diagonal, from the top down to the diagonal; zeros below."""
        size = span.stop - span.start
        made = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        for columns, part in self.upper(span, span):
            made[: len(part), columns.start - span.start : columns.stop - span.start] = part
        for own, fine in self.corners:
            start, stop = max(own.start, span.start), min(own.stop, span.stop)
            if start < stop:
                inside, here = (slice(start - by, stop - by) for by in (own.start, span.start))
                made[here, here] = fine[inside, inside]
        return made.triu()


def numbers(width: int) -> int:
    """How many numbers a matrix of this width keeps; as many products each of a vector adds to them."""
    return sum(s.stop * (s.stop - s.start) for s in spans(width))


def spans(stop: int, step: int = PANEL, start: int = 0) -> list[slice]:
    """Numbers from `start` to below `stop`, so many at a time."""
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]
