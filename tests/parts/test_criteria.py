"""Criteria, growth and penalty on numbers small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.criteria import (
    ConnectionSensitivity,
    GeometricMedian,
    GradientSignal,
    L2Norm,
    Magnitude,
    NormScale,
    SignSplitMagnitude,
    SynapticSaliency,
    TaylorGate,
    TaylorWeight,
)
from prunus.parts.growth import GradientMagnitude, RandomGrowth
from prunus.parts.penalty import ScaleL1

W = torch.tensor([[3.0, -4.0], [0.0, 1.0], [-2.0, 2.0]])
G = torch.tensor([[1.0, 2.0], [5.0, -1.0], [3.0, 3.0]])


def test_values_by_hand() -> None:
    assert Magnitude()(w=W).tolist() == [[3.0, 4.0], [0.0, 1.0], [2.0, 2.0]]
    assert NormScale()(gamma=W).tolist() == [[3.0, 4.0], [0.0, 1.0], [2.0, 2.0]]
    assert SynapticSaliency()(flow=W).tolist() == [[3.0, 4.0], [0.0, 1.0], [2.0, 2.0]]
    assert torch.allclose(L2Norm()(w=W), torch.tensor([5.0, 1.0, 8.0**0.5]))
    assert ConnectionSensitivity()(w=W, g=G).tolist() == [[3.0, 8.0], [0.0, 1.0], [6.0, 6.0]]
    assert GradientSignal()(w=W, h=G).tolist() == [[3.0, -8.0], [0.0, -1.0], [-6.0, 6.0]]
    assert TaylorWeight()(w=W, g=G).tolist() == [25.0, 1.0, 0.0]
    assert TaylorGate()(a=W, g=G).tolist() == [25.0, 1.0, 0.0]
    assert GradientMagnitude()(g=G).tolist() == [[1.0, 2.0], [5.0, 1.0], [3.0, 3.0]]
    assert RandomGrowth()(u=G[:, :1]).tolist() == [[1.0], [5.0], [3.0]]


def test_distances_to_all_others() -> None:
    corners = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
    assert GeometricMedian()(w=corners).tolist() == [15.0, 15.0, 15.0, 25.0]
    half = GeometricMedian()(w=corners.to(torch.bfloat16))
    assert half.tolist() == [15.0, 15.0, 15.0, 25.0]
    assert GeometricMedian()(w=corners.double()).dtype == torch.float64


def test_single_weights_have_no_neighbours() -> None:
    with pytest.raises(SpecError, match="single weights"):
        GeometricMedian()(w=torch.ones(3, 4, 1))


def test_signs_are_ranked_apart() -> None:
    """Two positive, three negative and a zero: halves and thirds by distance from zero."""
    w = torch.tensor([[0.1, -5.0, 0.0], [7.0, -0.2, -1.0]]).unsqueeze(-1)
    score = SignSplitMagnitude()(w=w).squeeze(-1)
    torch.testing.assert_close(score, torch.tensor([[1 / 2, 1.0, 0.0], [1.0, 1 / 3, 2 / 3]], dtype=torch.float64))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(0.05, 0.6), st.floats(0.0, 0.5))
def test_the_lowest_share_takes_that_share_of_either_sign(seed: int, share: float, zeros: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(30, 20, 1, generator=generator)
    w[torch.rand(w.shape, generator=generator) < zeros] = 0.0
    score = SignSplitMagnitude()(w=w).flatten()
    flat = w.flatten()
    live = int((flat != 0).sum())
    order = score.masked_fill(flat == 0, torch.inf).argsort(stable=True)[: int(share * live)]
    for side in (flat > 0, flat < 0):
        gone = torch.zeros_like(side)
        gone[order] = True
        gone &= side
        assert abs(int(gone.sum()) - share * int(side.sum())) <= 1.5
        if gone.any() and (side & ~gone).any():
            assert float(flat[gone].abs().max()) <= float(flat[side & ~gone].abs().min())


ROWWISE: list[Criterion] = [Magnitude(), L2Norm(), GeometricMedian()]


@pytest.mark.parametrize("criterion", ROWWISE, ids=repr)
def test_scores_move_with_their_units(criterion: Criterion) -> None:
    w = torch.randn(9, 6)
    order = torch.randperm(9)
    torch.testing.assert_close(criterion(w=w[order]), criterion(w=w)[order])


def test_penalty_is_strength_times_the_sum_and_its_slope_the_sign() -> None:
    gamma = torch.tensor([[2.0], [-3.0], [0.5]], requires_grad=True)
    value = ScaleL1(strength=0.1)(gamma=gamma)
    assert float(value.detach()) == pytest.approx(0.55)
    value.backward()
    assert gamma.grad is not None
    torch.testing.assert_close(gamma.grad, torch.tensor([[0.1], [-0.1], [0.1]]))
    with pytest.raises(SpecError, match="negative"):
        ScaleL1(strength=-1.0)
    with pytest.raises(SpecError, match="negative"):
        ScaleL1(strength=math.nan)
