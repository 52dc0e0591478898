"""Allocations: exact counts, order, constraints, patterns."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.core.errors import BudgetError, SpecError
from prunus.core.groups import Group
from prunus.core.part import Allocation, Masks
from prunus.parts.allocation import ERK, LAMP, GlobalRanking, Isomorphic, NofM, SmartRatio, Uniform
from prunus.parts.allocation.constraints import feasible
from prunus.parts.allocation.dealing import rounded_to_total
from prunus.parts.allocation.selection import kept
from tests.parts.conftest import channels, element, random_scores, space_of

quick = settings(deadline=None, max_examples=60)
SPACE = space_of(
    element("a", 8, 3, 3, 3),
    element("b", 16, 8, 3, 3),
    element("dw", 16, 1, 3, 3),
    element("c", 5, 16),
    element("d", 2, 7),
)
TOTAL = sum(g.units for g in SPACE.values())
EXACT: list[Allocation] = [
    GlobalRanking(),
    GlobalRanking(rounding="nearest"),
    GlobalRanking(normalize="mean"),
    LAMP(),
    LAMP(rounding="ceil"),
    ERK(),
    ERK(kernel=False, rounding="nearest"),
    SmartRatio(),
    SmartRatio(decay=True, last=0.9),
]
EVERY = [*EXACT, Isomorphic(), Uniform(), Uniform(within="row", rounding="nearest")]
DENSITIES = [1e-9, 1e-4, 0.001, 0.01, 0.05, 0.1, 0.3, 1 / 3, 0.5, 0.8, 0.95, 0.999, 1.0]


def total(masks: Masks) -> int:
    return sum(int(m.sum()) for m in masks.values())


def named(parts: list[Allocation]) -> object:
    return pytest.mark.parametrize("allocation", parts, ids=repr)


# Counts


@named(EXACT)
@pytest.mark.parametrize("density", DENSITIES)
def test_network_wide_counts_are_exact(allocation: Allocation, density: float) -> None:
    for levels in (0, 3, 1):
        masks = allocation(random_scores(SPACE, levels=levels), density, SPACE)
        assert total(masks) == kept(density, TOTAL, allocation.rounding)  # type: ignore[attr-defined]
        assert {n: m.shape for n, m in masks.items()} == {n: torch.Size(g.shape) for n, g in SPACE.items()}


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-6, 1.0), st.integers(0, 2**31))
def test_network_wide_counts_are_exact_at_any_density(density: float, seed: int) -> None:
    scores = random_scores(SPACE, seed)
    for allocation in EXACT:
        assert total(allocation(scores, density, SPACE)) == kept(density, TOTAL, allocation.rounding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("rounding", ["floor", "nearest", "ceil"])
@pytest.mark.parametrize("density", DENSITIES)
def test_uniform_counts_per_layer_and_per_row(rounding: Literal["floor", "nearest", "ceil"], density: float) -> None:
    scores = random_scores(SPACE, levels=4)
    for name, mask in Uniform(rounding=rounding)(scores, density, SPACE).items():
        assert int(mask.sum()) == kept(density, SPACE[name].units, rounding)
    for name, mask in Uniform("row", rounding)(scores, density, SPACE).items():
        assert set(mask.sum(1).tolist()) == {kept(density, SPACE[name].shape[1], rounding)}


def test_no_scores_give_no_masks() -> None:
    assert GlobalRanking()({}, 0.5, {}) == {}


@quick
@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.floats(1e-4, 1.0), st.integers(0, 2**31))
def test_rounding_to_a_total(sizes: list[int], density: float, seed: int) -> None:
    """Within one of what is asked, never above the layer, exact in sum."""
    whole = kept(density, sum(sizes))
    raw = torch.rand(len(sizes), generator=torch.Generator().manual_seed(seed)).double() + 0.01
    exact = {str(i): whole * float(r / raw.sum()) for i, r in enumerate(raw)}
    units = {str(i): max(n, math.ceil(exact[str(i)])) for i, n in enumerate(sizes)}
    found = rounded_to_total(exact, units, whole)
    assert sum(found.values()) == whole
    assert all(abs(found[n] - exact[n]) < 1 + 1e-6 and 0 <= found[n] <= units[n] for n in found)


# Order


@named(EVERY)
def test_masks_do_not_hang_on_the_order_of_weights(allocation: Allocation) -> None:
    """Permuting the weights of a layer permutes its mask (Uniform within rows: permuting rows, and columns)."""
    scores = random_scores(SPACE, seed=5)
    masks = allocation(scores, 0.3, SPACE)
    generator = torch.Generator().manual_seed(6)
    rows = {n: torch.randperm(s.shape[0], generator=generator) for n, s in scores.items()}
    columns = {n: torch.randperm(s.shape[1], generator=generator) for n, s in scores.items()}
    moved = allocation({n: s[rows[n]][:, columns[n]] for n, s in scores.items()}, 0.3, SPACE)
    assert all(torch.equal(moved[n], m[rows[n]][:, columns[n]]) for n, m in masks.items())


@named([GlobalRanking(), LAMP(), Isomorphic(), Uniform(), ERK()])
def test_masks_do_not_hang_on_the_order_of_layers(allocation: Allocation) -> None:
    scores = random_scores(SPACE, seed=7)
    masks = allocation(scores, 0.3, SPACE)
    turned = allocation(dict(reversed(scores.items())), 0.3, SPACE)
    counts = {n: abs(int(m.sum()) - int(turned[n].sum())) for n, m in masks.items()}
    # ERK gives the largest remainders one more: equal remainders go to the earlier layer.
    assert max(counts.values()) <= (1 if isinstance(allocation, ERK) else 0)
    if not isinstance(allocation, ERK):
        assert all(torch.equal(m, turned[n]) for n, m in masks.items())


@named(EVERY)
def test_of_equals_the_earlier_stays(allocation: Allocation) -> None:
    ones = {n: torch.ones(g.shape) for n, g in SPACE.items()}
    for name, mask in allocation(ones, 0.4, SPACE).items():
        line = mask.flatten() if getattr(allocation, "within", "layer") == "layer" else mask[0]
        assert torch.equal(line, line.sort(descending=True, stable=True).values), name


@named([a for a in EVERY if not isinstance(a, SmartRatio)])
def test_less_density_keeps_a_subset(allocation: Allocation) -> None:
    scores = random_scores(SPACE, seed=8)
    before = {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    for density in sorted(DENSITIES, reverse=True):
        masks = allocation(scores, density, SPACE)
        over = {n: int((m & ~before[n]).sum()) for n, m in masks.items()}
        # Rounding to a total may move one unit between layers.
        assert max(over.values()) <= (1 if isinstance(allocation, ERK) else 0), over
        before = masks


@named(EVERY)
def test_pruned_units_stay_pruned(allocation: Allocation) -> None:
    """-inf never stays, and what is kept of the rest is the best of it."""
    scores = random_scores(SPACE, seed=9)
    once = allocation(scores, 0.5, SPACE)
    again = allocation({n: s.masked_fill(~once[n], -torch.inf) for n, s in scores.items()}, 0.2, SPACE)
    assert all(not (m & ~once[n]).any() for n, m in again.items())
    same = allocation({n: s.masked_fill(~once[n], -torch.inf) for n, s in scores.items()}, 0.5, SPACE)
    assert all(torch.equal(m, once[n]) for n, m in same.items())


# LAMP


def test_lamp_adapts_by_what_comes_after() -> None:
    adapted = LAMP().adapted(torch.tensor([[3.0, 1.0], [2.0, -torch.inf]]))
    assert adapted.tolist() == [[1.0, 1 / 14], [4 / 13, -math.inf]]


def test_lamp_of_equal_weights_keeps_the_earlier_and_empties_no_layer() -> None:
    space = space_of(element("a", 2, 3), element("b", 2, 3))
    scores = {"a": torch.full((2, 3), 5.0), "b": torch.full((2, 3), 1e-6)}
    masks = LAMP()(scores, 4 / 12, space)
    assert {n: m.flatten().tolist() for n, m in masks.items()} == {n: [True] * 2 + [False] * 4 for n in "ab"}


def test_lamp_of_zeros_is_zero() -> None:
    assert LAMP().adapted(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


# Densities by rule


def test_erk_of_three_layers_by_hand() -> None:
    """(8 + 8) / 64, (4 + 4) / 16, (2 + 2) / 4: 16, 8 and 4 raw units. At half of 84 units the scale is 1.5, so the
    last layer and then (scale 38/24) none but it is dense: 4, then 8 * 38/24 = 12.67 and 25.33."""
    space = space_of(element("a", 8, 8), element("b", 4, 4), element("c", 2, 2))
    assert ERK().counts(space, ["a", "b", "c"], 0.5) == {"a": 25, "b": 13, "c": 4}


def test_erk_of_channels_goes_by_their_weight_and_without_one_by_their_shape() -> None:
    """Weights of [64, 3, 3, 3] and [4, 3, 3, 3]: raw densities 73/1728 and 13/108, 2.70 and 0.48 units of 21."""
    wide, narrow = channels("wide", 64), channels("narrow", 4)
    assert ERK().counts(space_of(wide, narrow), ["wide", "narrow"], 0.3) == {"wide": 18, "narrow": 3}
    assert ERK().raw(Group("bare", (10,), wide.members)) == 1.0


def test_smart_ratio_of_three_layers_by_hand() -> None:
    """Shares (L-i+1)^2 + (L-i+1) with L = 3: 12 and 6 for the body of 100 units each, 0.3 of 10 for the head. 63 are
    kept in all: 3, and 60 as 2 : 1."""
    space = space_of(element("a", 10, 10, 1, 1), element("b", 10, 10, 1, 1), element("fc", 2, 5))
    assert SmartRatio().counts(space, list(space), 0.3) == {"a": 40, "b": 20, "fc": 3}


def test_smart_ratio_pushes_on_what_a_layer_cannot_hold() -> None:
    """0.9 of 210: 3 for the head and 186 for the body, of which 124 are the first layer's: 24 go to the second."""
    space = space_of(element("a", 10, 10, 1, 1), element("b", 10, 10, 1, 1), element("fc", 2, 5))
    assert SmartRatio().counts(space, list(space), 0.9) == {"a": 100, "b": 86, "fc": 3}


def test_smart_ratio_head_gives_way_to_small_and_large_budgets() -> None:
    space = space_of(element("a", 10, 10, 1, 1), element("fc", 10, 10))
    assert SmartRatio().counts(space, list(space), 0.05) == {"a": 0, "fc": 10}
    assert SmartRatio().counts(space, list(space), 1.0) == {"a": 100, "fc": 100}
    assert SmartRatio().counts(space_of(element("fc", 10, 10)), ["fc"], 0.25) == {"fc": 25}


def test_smart_ratio_refuses_a_share_that_is_none() -> None:
    with pytest.raises(SpecError, match="last=0"):
        SmartRatio(last=0.0)


# N:M


@quick
@given(
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8)]), st.sampled_from(["row", "input"]), st.integers(0, 2**31)
)
def test_n_of_m_keeps_n_in_every_block(pattern: tuple[int, int], along: Literal["row", "input"], seed: int) -> None:
    n, m = pattern
    space = space_of(
        element("conv", 4, 8, 3, 3), element("fc", 6, 16), element("stem", 4, 3, 3, 3), element("odd", 4, 9)
    )
    scores = random_scores(space, seed, levels=5)
    masks = NofM(n=n, m=m, along=along)(scores, n / m, space)
    conv = masks["conv"].reshape(4, 8, 9)
    blocks = conv.reshape(-1, m) if along == "row" else conv.transpose(1, 2).reshape(-1, m)
    assert bool((blocks.sum(1) == n).all())
    assert bool((masks["fc"].reshape(-1, m).sum(1) == n).all())
    assert bool(masks["stem"].all()) and bool(masks["odd"].all())
    worth = scores["fc"].reshape(-1, m)
    lowest = worth.masked_fill(~masks["fc"].reshape(-1, m), torch.inf).amin(1)
    highest = worth.masked_fill(masks["fc"].reshape(-1, m), -torch.inf).amax(1)
    assert bool((lowest >= highest).all())


def test_n_of_m_layouts_agree_on_linear_layers_only() -> None:
    space = space_of(element("conv", 4, 8, 3, 3), element("fc", 6, 16))
    scores = random_scores(space, 1)
    rows, inputs = (NofM(along=along)(scores, 0.5, space) for along in ("row", "input"))
    assert torch.equal(rows["fc"], inputs["fc"])
    assert not torch.equal(rows["conv"], inputs["conv"])


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 2)])
def test_n_of_m_refuses_patterns_that_are_none(n: int, m: int) -> None:
    with pytest.raises(SpecError, match="0 < n < m"):
        NofM(n=n, m=m)


def test_n_of_m_has_one_density() -> None:
    space = space_of(element("fc", 4, 8))
    scores = random_scores(space)
    assert NofM(n=1, m=4).density == 0.25
    with pytest.raises(BudgetError, match=r"keeps exactly 0\.5"):
        NofM()(scores, 0.4, space)
    assert bool(NofM()(scores, 1.0, space)["fc"].all())


# Constraints


@quick
@given(
    st.integers(0, 40),
    st.sampled_from([(24, 1, 1), (24, 8, 1), (24, 1, 4), (24, 8, 3), (24, 2, 3), (20, 8, 1)]),
    st.integers(0, 9),
)
def test_feasible_counts_respect_every_demand(k: int, demand: tuple[int, int, int], at_least: int) -> None:
    units, multiple, parts = demand
    found = feasible(channels("a", units, multiple=multiple, parts=parts, at_least=at_least), k)
    assert min(at_least, units) <= found <= units
    assert found == units or (found % multiple == 0 and found % parts == 0)
    step = math.lcm(multiple, parts)
    assert found <= max(k, math.ceil(at_least / step) * step) or found == units


@named([GlobalRanking(), Isomorphic(normalize="max"), Uniform(), LAMP(), ERK(), SmartRatio()])
@pytest.mark.parametrize("density", [1e-9, 0.05, 0.3, 0.6, 1.0])
def test_groups_get_what_they_demand(allocation: Allocation, density: float) -> None:
    space = space_of(
        channels("free", 16, at_least=1),
        channels("eights", 32, multiple=8, at_least=1),
        channels("heads", 24, parts=4, at_least=1),
        channels("both", 24, parts=3, multiple=4, at_least=5),
    )
    scores = random_scores(space, 3)
    masks = allocation(scores, density, space)
    counts = {n: int(m.sum()) for n, m in masks.items()}
    assert all(counts[n] >= space[n].at_least for n in space)
    assert counts["eights"] % 8 == 0
    assert len(set(masks["heads"].reshape(4, 6).sum(1).tolist())) == 1
    assert len(set(masks["both"].reshape(3, 8).sum(1).tolist())) == 1
    assert counts["both"] % 4 == 0
    if density == 1.0:
        assert all(bool(m.all()) for m in masks.values())


def test_the_best_of_a_group_stay_however_bad() -> None:
    space = space_of(channels("good", 10, at_least=1), channels("bad", 10, at_least=2))
    scores = {"good": torch.rand(10) + 5, "bad": -torch.arange(10.0)}
    masks = GlobalRanking()(scores, 0.4, space)
    assert masks["bad"].tolist() == [True, True] + [False] * 8
    assert total(masks) == 8
    # Where the budget is below all minima, the minima win.
    assert total(GlobalRanking()(scores, 1e-6, space)) == 3
