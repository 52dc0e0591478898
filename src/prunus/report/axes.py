"""Scales, ticks and label placement for the plots."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Where an axis of sparsities may be marked once it is stretched towards 100 %.
_STRETCHED = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
STRETCH_FROM = 0.85  # from here on, equal steps in sparsity would crowd the interesting end


class SparsityAxis:
    """Sparsity -> pixels. Where sparsities come close to 1, equal distances are equal factors in what is kept.

    `stretched` says so (True) or keeps equal distances equal (False), whatever the sparsities are.
    """

    def __init__(
        self, largest: int | float, left: int | float, right: int | float, stretched: bool | None = None
    ) -> None:
        largest = min(max(largest, 0.1), 0.9999) if stretched else largest
        self.stretched = self.stretches(largest) if stretched is None else stretched
        self.left, self.right = left, right
        self.end = (self._position(largest) if self.stretched else min(1.0, max(largest, 0.1))) * 1.02

    @staticmethod
    def stretches(largest: int | float) -> bool:
        """Whether an axis to this sparsity is drawn stretched."""
        return STRETCH_FROM <= largest < 0.9999

    def _position(self, sparsity: int | float) -> float:
        return -math.log10(1.0 - sparsity) if self.stretched else sparsity

    def __call__(self, sparsity: int | float) -> float:
        return self.left + (self.right - self.left) * self._position(sparsity) / self.end

    def ticks(self, apart: int | float) -> list[float]:
        """Marks at least `apart` pixels from each other, the sparser ones first where there is no room for all."""
        if self.stretched:
            marks = [s for s in _STRETCHED if self._position(s) <= self.end]
        else:
            step = nice_step(self.end, max(2, int((self.right - self.left) / apart)))
            marks = [step * i for i in range(int(self.end / step + 1e-9) + 1)]
        chosen: list[float] = []
        for mark in sorted(marks, reverse=True):
            if not chosen or self(chosen[-1]) - self(mark) >= apart:
                chosen.append(mark)
        return chosen[::-1]


def nice_step(span: int | float, parts: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` into at most about `parts` pieces."""
    raw = span / max(parts, 1)
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= raw * 0.999)


def accuracy_range(values: Sequence[float]) -> tuple[float, float, float]:
    """(lowest, highest, step) of an axis from 0 to 1 at most, on round numbers, that holds all values."""
    low, high = min(values), max(values)
    room = max(high - low, 0.01) * 0.06
    step = nice_step(high - low + 2 * room, 5)
    bottom = max(0.0, math.floor((low - room) / step) * step)
    top = min(1.0, math.ceil((high + room) / step) * step)
    return bottom, top, step


def spread(wanted: Sequence[float], gap: int | float, low: int | float, high: int | float) -> list[float]:
    """Positions near `wanted`, at least `gap` apart and within [low, high] as far as there is room.

    >>> spread([10.0, 11.0, 50.0], 10.0, 0.0, 100.0)
    [10.0, 20.0, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    floor = low
    for i in order:
        placed[i] = max(wanted[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
