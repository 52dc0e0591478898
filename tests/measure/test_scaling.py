"""The error law of iterative magnitude pruning: its three regimes, and the points that it was made from."""

from __future__ import annotations

import numpy as np
import pytest

from prunus.core.errors import SpecError
from prunus.measure import ScalingLaw, fit_scaling_law, scaling_intervals

GRID = [0.8**k for k in range(28)]


def complex_law(d: float, dense: float, high: float, gamma: float, p: float) -> float:
    """The formula as it is printed, in complex numbers."""
    return dense * abs((d - 1j * p * (high / dense) ** (1 / gamma)) / (d - 1j * p)) ** gamma


@pytest.mark.parametrize(
    ("dense", "high", "gamma", "p"), [(0.06, 0.9, 1.2, 0.003), (0.3, 0.8, 0.7, 0.02), (1.5, 4.6, 2.5, 0.01)]
)
def test_the_points_lead_back_to_their_law(dense: float, high: float, gamma: float, p: float) -> None:
    errors = [complex_law(d, dense, high, gamma, p) for d in GRID]
    law = ScalingLaw(dense, high, gamma, p)
    assert [law(d) for d in GRID] == pytest.approx(errors)
    found = fit_scaling_law(GRID, errors, dense=dense)
    assert (found.high, found.gamma, found.p) == pytest.approx((high, gamma, p), rel=1e-3)
    assert found.residual < 1e-6


def test_noise_moves_the_law_a_little() -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.02, len(GRID))
    errors = [complex_law(d, 0.06, 0.9, 1.2, 0.003) * n for d, n in zip(GRID, noise, strict=True)]
    found = fit_scaling_law(GRID, errors, dense=0.06)
    assert found.high == pytest.approx(0.9, rel=0.1) and found.gamma == pytest.approx(1.2, rel=0.15)
    assert 0.01 < found.residual < 0.03


def test_intervals_hold_the_law_and_narrow_with_the_noise() -> None:
    draw, widths = np.random.default_rng(1), []
    for spread in (0.002, 0.03):
        noise = draw.normal(1.0, spread, len(GRID))
        errors = [complex_law(d, 0.06, 0.9, 1.2, 0.003) * n for d, n in zip(GRID, noise, strict=True)]
        law = fit_scaling_law(GRID, errors, dense=0.06)
        found = scaling_intervals(law, GRID, errors, share=0.98, resamples=30)
        assert all(found[n][0] <= getattr(law, n) <= found[n][1] for n in ("high", "gamma", "p"))
        widths.append(found["gamma"][1] - found["gamma"][0])
        assert abs(law.gamma - 1.2) < widths[-1]
    assert widths[0] < widths[1] / 3
    assert scaling_intervals(law, GRID, errors, share=0.98, resamples=30) == found
    with pytest.raises(SpecError, match="resamples"):
        scaling_intervals(law, GRID, errors, resamples=3)


def test_low_middle_and_high_density_are_flat_a_power_and_flat() -> None:
    law = ScalingLaw(0.1, 0.9, 1.0, 1e-4)
    assert law(1e-9) == pytest.approx(0.9, rel=1e-6) and law(1.0) == pytest.approx(0.1, rel=1e-5)
    steep = ScalingLaw(1e-4, 1.0, 1.0, 1e-6)
    slope = (np.log(steep(2e-4)) - np.log(steep(1e-4))) / np.log(2.0)
    assert slope == pytest.approx(-1.0, abs=0.01)


def test_the_dense_error_may_be_read_off_the_points() -> None:
    found = fit_scaling_law([1.0, 0.5, 0.1, 0.01, 0.001], [0.1, 0.1, 0.11, 0.3, 0.6])
    assert found.dense == 0.1 and found(0.001) == pytest.approx(0.6, rel=0.05)


@pytest.mark.parametrize(
    ("densities", "errors", "message"),
    [
        ([0.5, 0.2, 0.1], [1.0, 2.0, 3.0], "at least 4"),
        ([0.5, 0.2, 0.1, 0.0], [1.0, 2.0, 3.0, 4.0], "lie in"),
        ([0.5, 0.2, 0.1, 0.05], [1.0, 2.0, 3.0, 0.0], "positive"),
    ],
)
def test_impossible_points_are_refused(densities: list[float], errors: list[float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        fit_scaling_law(densities, errors)
