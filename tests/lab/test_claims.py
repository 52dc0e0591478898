"""Verdicts on claims: known intervals, and each of the words."""

from __future__ import annotations

import math
from statistics import mean, stdev

import pytest

from prunus.lab import claims


def test_the_interval_is_students() -> None:
    """Against the textbook: 3 numbers, mean 2, standard deviation 1, t = 2.920 with 2 degrees of freedom."""
    low, high = claims.interval([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - 2.920 / math.sqrt(3)) and high == pytest.approx(2 + 2.920 / math.sqrt(3))


def test_students_points_are_those_of_the_distribution() -> None:
    """P(T < t) = 0.95, by adding up the density."""
    for seeds, point in claims.STUDENT.items():
        free = seeds - 1
        scale = math.gamma((free + 1) / 2) / (math.sqrt(free * math.pi) * math.gamma(free / 2))
        steps, width = 20_000, point / 20_000
        half = sum(scale * (1 + ((i + 0.5) * width) ** 2 / free) ** (-(free + 1) / 2) * width for i in range(steps))
        assert 0.5 + half == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize(
    ("left", "right", "margin", "word"),
    [
        ({0: 3.0, 1: 3.1, 2: 2.9}, {0: 1.0, 1: 1.0, 2: 1.0}, 0.0, "supported"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, {0: 3.0, 1: 3.1, 2: 2.9}, 0.0, "refuted"),
        ({0: 3.0, 1: 0.0, 2: 1.5}, {0: 1.0, 1: 1.0, 2: 1.0}, 0.0, "inconclusive"),
        ({0: 0.9, 1: 0.9, 2: 0.91}, {0: 1.0, 1: 1.0, 2: 1.0}, -0.3, "supported"),
        ({0: 9.0}, {0: 1.0}, 0.0, "too few runs"),
        ({0: 9.0, 1: 9.0}, {2: 1.0, 3: 1.0}, 0.0, "too few runs"),
    ],
)
def test_each_word(left: dict[int, float], right: dict[int, float], margin: float, word: str) -> None:
    assert claims.compared(left, right, margin).word == word


def test_seeds_belong_together() -> None:
    """Large differences between seeds that both sides share are none between the sides."""
    left, right = {0: 10.0, 1: 50.1, 2: 90.0}, {2: 89.0, 0: 9.0, 1: 49.0, 7: 1000.0}
    found = claims.compared(left, right)
    assert found.word == "supported" and found.seeds == 3
    gaps = [1.0, 1.1, 1.0]
    assert f"{mean(gaps):+.2f}" in found.told and stdev(gaps) < 0.1


def test_a_target_is_met_by_all_by_some_or_by_none() -> None:
    assert claims.on_target({0: 0.505, 1: 0.495}, 0.5, 0.01).word == "supported"
    assert claims.on_target({0: 0.505, 1: 0.595}, 0.5, 0.01).word == "inconclusive"
    assert claims.on_target({0: 0.705, 1: 0.595}, 0.5, 0.01).word == "refuted"
    assert claims.on_target({0: 0.5}, 0.5, 0.01).word == "too few runs"
