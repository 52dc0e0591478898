"""Turns and second descents of curves that were drawn by hand."""

from __future__ import annotations

import pytest

from prunus.core.errors import SpecError
from prunus.measure import double_descent, essential_sparsity

GRID = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9]


def test_the_turn_is_where_the_slope_falls_most() -> None:
    found = essential_sparsity(GRID, [0.90, 0.90, 0.895, 0.885, 0.60, 0.40])
    assert (found.within, found.turn, found.dense) == (0.4, 0.6, 0.90)
    assert found.before == pytest.approx(0.05) and found.after == pytest.approx(1.425)
    assert essential_sparsity(GRID, [0.90, 0.90, 0.895, 0.885, 0.60, 0.40], tolerance=0.02).within == 0.6
    flat = essential_sparsity(GRID, [0.9] * 6)
    assert flat.within == 0.9 and flat.turn is None
    assert essential_sparsity(GRID, [0.5, 0.5, 0.6, 0.7, 0.8, 0.9]).turn is None
    # A later point within the tolerance does not count once one before it was outside.
    assert essential_sparsity(GRID, [0.9, 0.8, 0.9, 0.9, 0.9, 0.1]).within == 0.0


def test_a_second_descent_is_a_rise_after_a_fall() -> None:
    found = double_descent(GRID, [0.80, 0.75, 0.70, 0.78, 0.79, 0.40])
    assert found is not None and (found.trough, found.peak) == (0.4, 0.8)
    assert found.fall == pytest.approx(0.10) and found.rise == pytest.approx(0.09)
    assert double_descent(GRID, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]) is None
    # It only rises, and falls at the end: nothing was lost before.
    assert double_descent(GRID, [0.5, 0.6, 0.7, 0.8, 0.7, 0.4]) is None


@pytest.mark.parametrize(
    ("sparsities", "scores", "match"),
    [
        ([0.0, 0.5], [1.0, 0.5], "at least 4"),
        ([0.0, 0.5, 0.4, 0.9], [1.0, 1.0, 1.0, 1.0], "sparsities grow"),
        ([0.1, 0.5, 0.6, 0.9], [1.0, 1.0, 1.0, 1.0], "must be 0"),
        ([0.0, 0.5, 0.6, 1.0], [1.0, 1.0, 1.0, 1.0], "lie in"),
        ([0.0, 0.5, 0.6, 0.9], [1.0, float("nan"), 1.0, 1.0], "every score"),
    ],
)
def test_curves_that_say_nothing_are_refused(sparsities: list[float], scores: list[float], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        essential_sparsity(sparsities, scores)


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(SpecError, match="tolerance"):
        essential_sparsity(GRID, [0.9] * 6, tolerance=-0.1)
