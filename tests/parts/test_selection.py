"""The exact selection against a plain sort: ties, infinities, types, layouts, and every way the sampled bracket can
go.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunus.core.rows import rows_top_k
from prunus.parts.allocation import selection
from prunus.parts.allocation.selection import kept, top_k

quick = settings(deadline=None, max_examples=80)
VALUES = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from([0.0, -0.0, 1.0, float("inf"), float("-inf")]),
)


def sorted_out(tensors: list[Tensor], k: int) -> list[Tensor]:
    """The k best of the joined values: a stable sort in float64, without the -inf."""
    flat = torch.cat([t.reshape(-1).double() for t in tensors])
    best = flat.argsort(descending=True, stable=True)[: max(0, k)]
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[best] = True
    mask &= flat > -torch.inf
    return [m.reshape(t.shape) for m, t in zip(mask.split([t.numel() for t in tensors]), tensors, strict=True)]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and samples so small that a thousand values go through every branch."""
    monkeypatch.setattr(selection, "CHUNK", 37)
    monkeypatch.setattr(selection, "SAMPLE", 16)


# top_k


@quick
@given(st.lists(st.lists(VALUES, max_size=20), min_size=1, max_size=4), st.integers(-1, 85))
def test_top_k_is_a_stable_sort(rows: list[list[float]], k: int) -> None:
    tensors = [torch.tensor(r) for r in rows]
    assert equal(top_k(tensors, k), sorted_out(tensors, k))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("k", [0, 1, 99, 500, 999, 1000])
@pytest.mark.usefixtures("small_steps")
def test_top_k_in_every_float_type(dtype: torch.dtype, k: int) -> None:
    """In half precision a thousand normal numbers hold many equal ones."""
    tensors = [torch.randn(600).to(dtype), torch.randn(20, 20).to(dtype)]
    assert equal(top_k(tensors, k), sorted_out(tensors, k))


@pytest.mark.parametrize("k", [1, 150, 299, 300, 450])
def test_top_k_of_mixed_types_compares_in_the_wider(k: int) -> None:
    """0.1 in float64 lies between two float32: a threshold in the one is no threshold in the other."""
    one, other = torch.full((300,), 0.1), torch.full((300,), 0.1, dtype=torch.float64)
    assert float(one[0]) > float(other[0])
    assert equal(top_k([other, one], k), sorted_out([other, one], k))


@pytest.mark.usefixtures("small_steps")
def test_top_k_of_transposed_and_strided_scores() -> None:
    tensors = [torch.randn(31, 17).T, torch.randn(64, 8)[::2, ::3], torch.randn(5, 6, 7).movedim(1, 0)]
    assert not any(t.is_contiguous() for t in tensors)
    for k in (1, 100, 400, 831):
        assert equal(top_k(tensors, k), sorted_out(tensors, k))


@pytest.mark.usefixtures("small_steps")
def test_top_k_where_the_sample_misleads() -> None:
    """Sorted, periodic, constant and spiked scores: the bracket from every n-th value misses, and is opened again."""
    n = 2000
    period = n // 16
    spiked = torch.zeros(n)
    spiked[::period] = torch.linspace(5, 6, len(spiked[::period]))
    hollow = torch.ones(n)
    hollow[::period] = -7.0
    hidden = torch.randn(n)
    hidden[1::period] = 100.0
    for scores, k in itertools.product(
        [torch.arange(n).float(), -torch.arange(n).float(), torch.full((n,), 2.0), spiked, hollow, hidden],
        [1, 2, 15, 16, 17, 125, 1000, 1983, 1984, 1999],
    ):
        assert equal(top_k([scores], k), sorted_out([scores], k)), (scores[:5], k)
        halves = [scores[:700], scores[700:]]
        assert equal(top_k(halves, k), sorted_out(halves, k))


@quick
@given(st.integers(0, 2**31), st.integers(1, 3000), st.integers(1, 30), st.floats(0, 0.9))
def test_top_k_through_the_sample_with_ties_and_pruned_units(seed: int, k: int, levels: int, gone: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (3000,), generator=generator).float()
    scores[torch.rand(3000, generator=generator) < gone] = -torch.inf
    tensors = list(scores.split([1, 1500, 1000, 499]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "CHUNK", 256)
        patch.setattr(selection, "SAMPLE", 64)
        assert equal(top_k(tensors, k), sorted_out(tensors, k))


def test_top_k_of_many_weights_at_its_real_size() -> None:
    """More values than four samples and several chunks, at the densities that methods use."""
    n = 300_000
    tensors = [torch.randn(n), torch.randn(n) * 0.1, torch.zeros(1000)]
    assert sum(t.numel() for t in tensors) > 4 * selection.SAMPLE
    assert n > selection.CHUNK
    for density in (0.001, 0.1, 0.99):
        k = int(density * 2 * n)
        assert equal(top_k(tensors, k), sorted_out(tensors, k))


def test_top_k_leaves_scores_and_their_graph_alone() -> None:
    scores = torch.randn(50, requires_grad=True)
    before = scores.detach().clone()
    (mask,) = top_k([scores], 10)
    assert not mask.requires_grad
    assert torch.equal(scores.detach(), before)


@quick
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 2**31))
def test_rows_top_k_is_a_sort_of_each_row(columns: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(4, (6, columns), generator=generator).float()
    scores[scores == 3] = -torch.inf
    mask = rows_top_k(scores, k)
    for row, kept_row in zip(scores, mask, strict=True):
        assert equal([kept_row], sorted_out([row], k))


# kept


@quick
@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 10**7))
def test_kept_is_the_exact_fraction(part: int, whole: int, units: int) -> None:
    """Written as p/q or as 1 - (1 - p/q), a density keeps what the fraction says, in every rounding."""
    part = min(part, whole)
    exact = Fraction(part, whole) * units
    floor, ceil = exact.__floor__(), exact.__ceil__()
    nearest = (exact + Fraction(1, 2)).__floor__()
    for density in (part / whole, 1 - (1 - part / whole), 1 - (whole - part) / whole):
        assert kept(density, units, "floor") == ceil
        assert kept(density, units, "ceil") == floor
        assert kept(density, units, "nearest") == nearest


@pytest.mark.parametrize(
    ("density", "units", "floor", "nearest", "ceil"),
    [
        (1 - 0.9, 10, 1, 1, 1),
        (2 / 3, 3, 2, 2, 2),
        (0.1, 15, 2, 2, 1),  # 1.5: half a unit goes up
        (0.1, 268336, 26834, 26834, 26833),  # 26833.6, ResNet-20
        (1e-6, 3, 1, 0, 0),
        (1.0, 7, 7, 7, 7),
        (1e-12, 0, 0, 0, 0),
    ],
)
def test_kept_examples(density: float, units: int, floor: int, nearest: int, ceil: int) -> None:
    assert [kept(density, units, r) for r in ("floor", "nearest", "ceil")] == [floor, nearest, ceil]


@quick
@given(st.floats(0.001, 0.999), st.integers(1, 10**6))
def test_kept_floor_removes_what_synaptic_flow_does(density: float, units: int) -> None:
    """int((1 - d) n), except where their float product falls on the wrong side of a whole number."""
    removed = units - kept(density, units, "floor")
    product = (1.0 - density) * units
    assert removed == int(product) or abs(product - np.round(product)) < 1e-6
    assert abs(removed - int(product)) <= 1
