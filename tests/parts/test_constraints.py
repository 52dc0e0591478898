"""Multiples, minima and equal parts, together and with any allocation, against counting by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunus.core.groups import Group
from prunus.core.part import Allocation, Masks
from prunus.parts.allocation import ERK, LAMP, GlobalRanking, Isomorphic, SmartRatio, Uniform
from prunus.parts.allocation.selection import kept
from tests.parts.conftest import channels, random_scores, space_of

EVERY: list[Allocation] = [
    GlobalRanking(),
    GlobalRanking(normalize="mean"),
    LAMP(),
    Isomorphic(),
    Uniform(),
    ERK(),
    ERK(kernel=False, rounding="nearest"),
    SmartRatio(),
]
NETWORK_WIDE = [a for a in EVERY if not isinstance(a, Uniform)]

demands = st.tuples(
    st.sampled_from([(4, 1), (7, 1), (8, 1), (16, 1), (20, 1), (12, 3), (16, 4), (24, 2)]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 9),
)
spaces = st.lists(demands, min_size=1, max_size=4)
Demands = list[tuple[tuple[int, int], int, int]]


def built(found: Demands) -> dict[str, Group]:
    return space_of(
        *(
            channels(f"g{i}", units, parts=parts, multiple=multiple, at_least=at_least)
            for i, ((units, parts), multiple, at_least) in enumerate(found)
        )
    )


def allowed(group: Group) -> list[int]:
    """Every number of units that a group may keep, in ascending order: its definition, spelled out."""
    return [
        k
        for k in range(1, group.units + 1)
        if k == group.units or (k >= group.at_least and k % group.multiple == 0 and k % group.parts == 0)
    ]


def check(masks: Masks, space: Mapping[str, Group]) -> None:
    for name, mask in masks.items():
        group = space[name]
        assert int(mask.sum()) in allowed(group), name
        assert len(set(mask.reshape(group.parts, -1).sum(1).tolist())) == 1, name


def minima(space: Mapping[str, Group]) -> int:
    return sum(allowed(g)[0] for g in space.values())


@settings(deadline=None, max_examples=80)
@given(spaces, st.floats(0.0, 1.0), st.integers(0, 2**31), st.sampled_from([0, 3]))
def test_every_allocation_gives_every_group_what_it_demands(
    found: Demands, density: float, seed: int, levels: int
) -> None:
    space = built(found)
    scores = random_scores(space, seed, levels)
    units = sum(g.units for g in space.values())
    for allocation in EVERY:
        masks = allocation(scores, density, space)
        check(masks, space)
        if allocation in NETWORK_WIDE and not isinstance(allocation, Isomorphic):
            most = kept(density, units, allocation.rounding)  # type: ignore[attr-defined]
            assert sum(int(m.sum()) for m in masks.values()) <= max(most, minima(space)), allocation


def slow_global(scores: Mapping[str, Tensor], space: Mapping[str, Group], k: int) -> Masks:
    """Unit by unit: minima first, then the best of the rest; counts down to what is allowed; the best of each part."""
    units = []
    for i, (name, s) in enumerate(scores.items()):
        values = s.tolist()
        best = sorted(range(len(values)), key=lambda u: (-values[u], u))[: allowed(space[name])[0]]
        units += [(u not in best, -v, i, u, name) for u, v in enumerate(values)]
    chosen = [e[-1] for e in sorted(units, key=lambda e: (e[0], 0.0 if not e[0] else e[1], e[2], e[3]))[:k]]
    masks = {}
    for name, s in scores.items():
        group = space[name]
        options = [a for a in allowed(group) if a <= chosen.count(name)]
        count = options[-1] if options else allowed(group)[0]
        mask = torch.zeros(group.units, dtype=torch.bool)
        size = group.units // group.parts
        for part in range(group.parts):
            own = sorted(range(part * size, (part + 1) * size), key=lambda u: (-float(s[u]), u))
            mask[own[: count // group.parts]] = True
        masks[name] = mask
    return masks


@settings(deadline=None, max_examples=80)
@given(spaces, st.floats(0.0, 1.0), st.integers(0, 2**31), st.sampled_from([0, 3]))
def test_global_ranking_under_constraints_is_what_it_says(
    asked: Demands, density: float, seed: int, levels: int
) -> None:
    space = built(asked)
    scores = random_scores(space, seed, levels)
    expected = slow_global(scores, space, kept(density, sum(g.units for g in space.values())))
    found = GlobalRanking()(scores, density, space)
    assert all(torch.equal(found[n], expected[n]) for n in space)


def test_what_a_minimum_takes_is_taken_from_the_others() -> None:
    """The worst layer must keep eight of its units: the best one gives up a block, and the total is what was asked."""
    space = space_of(channels("best", 64, multiple=8, at_least=1), channels("worst", 64, multiple=8, at_least=1))
    scores = {"best": torch.rand(64) + 1, "worst": torch.rand(64) * torch.linspace(0, 1, 64)}
    masks = GlobalRanking()(scores, 0.34, space)
    assert {n: int(m.sum()) for n, m in masks.items()} == {"best": 32, "worst": 8}


@pytest.mark.parametrize("allocation", EVERY, ids=repr)
def test_a_group_smaller_than_the_multiple_stays_whole(allocation: Allocation) -> None:
    space = space_of(channels("small", 6, multiple=8, at_least=1), channels("wide", 64, multiple=8, at_least=1))
    for density in (0.01, 0.3, 0.7):
        masks = allocation(random_scores(space, 1), density, space)
        assert bool(masks["small"].all())
        assert 0 < int(masks["wide"].sum()) < 64 and int(masks["wide"].sum()) % 8 == 0


def test_pruned_units_stay_pruned_under_constraints() -> None:
    space = space_of(channels("a", 32, multiple=8, at_least=1), channels("b", 24, parts=3, multiple=4, at_least=5))
    scores = random_scores(space, 2)
    for allocation in EVERY:
        once = allocation(scores, 0.7, space)
        gone = {n: s.masked_fill(~once[n], -torch.inf) for n, s in scores.items()}
        for density in (0.7, 0.5, 0.2):
            again = allocation(gone, density, space)
            check(again, space)
            assert all(not (m & ~once[n]).any() for n, m in again.items())


def test_steps_are_common_multiples() -> None:
    assert allowed(channels("a", 24, parts=3, multiple=4, at_least=5)) == [12, 24]
    assert math.lcm(3, 4) == 12
