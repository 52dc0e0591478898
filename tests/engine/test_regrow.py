"""Drop and regrow: who goes, who comes, and how a number is spread, against loops over sorted lists."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.engine.regrow import added, apportion, drop, grow

SHARES = st.lists(st.floats(0, 1e6), min_size=1, max_size=6)


# Spreading a number


def test_in_proportion_by_largest_remainders() -> None:
    """Hamilton's method, by hand: quotas 3.0, 1.7, 0.3 give 3, 1, 0, and the one that is left to the 0.7."""
    assert apportion(5, {"a": 60.0, "b": 34.0, "c": 6.0}, dict.fromkeys("abc", 9)) == {"a": 3, "b": 2, "c": 0}


def test_equal_remainders_go_to_the_earlier_group() -> None:
    assert apportion(3, {"a": 1.0, "b": 1.0}, {"a": 9, "b": 9}) == {"a": 2, "b": 1}
    assert apportion(1, {"a": 1.0, "b": 1.0, "c": 1.0}, dict.fromkeys("abc", 1)) == {"a": 1, "b": 0, "c": 0}


def test_a_full_group_passes_on_what_it_has_no_room_for() -> None:
    """9 at 6 : 2 : 1, but the first takes two: 7 at 2 : 1, quotas 4.67 and 2.33."""
    assert apportion(9, {"a": 6.0, "b": 2.0, "c": 1.0}, {"a": 2, "b": 9, "c": 9}) == {"a": 2, "b": 5, "c": 2}


def test_groups_without_a_share_come_last_and_in_equal_parts() -> None:
    assert apportion(4, {"a": 1.0}, {"a": 9, "b": 9, "c": 9}) == {"a": 4, "b": 0, "c": 0}
    assert apportion(7, {"a": 1.0}, {"a": 2, "b": 9, "c": 9}) == {"a": 2, "b": 3, "c": 2}
    assert apportion(4, {}, {"a": 9, "b": 9}) == {"a": 2, "b": 2}
    assert apportion(3, {"a": 0.0, "b": 0.0}, {"a": 1, "b": 9}) == {"a": 1, "b": 2}


def test_no_more_than_there_is_room_for_in_all() -> None:
    assert apportion(99, {"a": 1.0, "b": 5.0}, {"a": 3, "b": 4}) == {"a": 3, "b": 4}
    assert apportion(0, {"a": 1.0}, {"a": 3}) == {"a": 0}
    assert apportion(5, {"a": 1.0}, {"a": 0}) == {"a": 0}
    assert apportion(5, {}, {}) == {}


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_shares_that_are_none(bad: float) -> None:
    with pytest.raises(SpecError, match="'b'"):
        apportion(3, {"a": 1.0, "b": bad}, {"a": 5, "b": 5})


@settings(deadline=None, max_examples=300)
@given(SHARES, st.lists(st.integers(0, 40), min_size=6, max_size=6), st.integers(0, 150))
def test_any_spread_is_exact_and_near_its_quota(shares: list[float], rooms: list[int], total: int) -> None:
    names = [str(i) for i in range(len(shares))]
    room = dict(zip(names, rooms, strict=False))
    found = apportion(total, dict(zip(names, shares, strict=True)), room)
    assert sum(found.values()) == min(total, sum(room.values()))
    assert all(0 <= found[n] <= room[n] for n in names)
    whole = sum(map(Fraction, shares))
    if whole and all(Fraction(s) * total / whole < room[n] for n, s in zip(names, shares, strict=True)):
        for n, s in zip(names, shares, strict=True):  # no group is full: each within one of its quota
            assert abs(found[n] - float(Fraction(s) * total / whole)) < 1 + 1e-6


# Dropping


def masks(**kept: str) -> dict[str, Tensor]:
    return {n: torch.tensor([c == "1" for c in k]) for n, k in kept.items()}


def text(mask: Tensor) -> str:
    return "".join("1" if m else "0" for m in mask.tolist())


def numbers(**values: list[float]) -> dict[str, Tensor]:
    return {n: torch.tensor(v) for n, v in values.items()}


KEPT = masks(a="111110", b="11110")
WORTH = numbers(a=[5, 1, 4, 1, 3, 0], b=[9, 2, 8, 7, 0])


def test_every_group_drops_its_own_share() -> None:
    left = drop(KEPT, WORTH, Event(1, 0.5, regrow=0.5))
    assert {n: text(m) for n, m in left.items()} == {"a": "101010", "b": "10100"}


def test_of_equals_the_later_goes() -> None:
    assert text(drop(KEPT, WORTH, Event(1, 0.5, regrow=0.2))["a"]) == "111010"


def test_across_groups_the_least_of_all_go() -> None:
    left = drop(KEPT, WORTH, Event(1, 0.5, regrow=0.5, across=True))  # four of nine: 1, 1, 2, 3
    assert {n: text(m) for n, m in left.items()} == {"a": "101000", "b": "10110"}


def test_only_those_under_a_worth_go() -> None:
    left = drop(KEPT, WORTH, Event(1, 0.5, regrow=1.0, under=3.0))
    assert {n: text(m) for n, m in left.items()} == {"a": "101010", "b": "10110"}
    assert text(drop(KEPT, WORTH, Event(1, 0.5, regrow=0.2, under=3.0))["a"]) == "111010"  # never more than the share
    assert drop(KEPT, WORTH, Event(1, 0.5, regrow=1.0, under=-9.0)).keys() == KEPT.keys()


def test_a_group_is_left_its_least_number_of_units_the_best_of_them() -> None:
    left = drop(KEPT, WORTH, Event(1, 0.5, regrow=1.0), {"a": 2})
    assert {n: text(m) for n, m in left.items()} == {"a": "101000", "b": "00000"}
    all_kept = drop(masks(a="100000"), WORTH, Event(1, 0.5, regrow=1.0), {"a": 4})
    assert text(all_kept["a"]) == "100000"  # no more than it had


def test_groups_without_worth_keep_theirs_and_masks_are_not_changed_in_place() -> None:
    before = {n: m.clone() for n, m in KEPT.items()}
    left = drop(KEPT, {"b": WORTH["b"]}, Event(1, 0.5, regrow=1.0, across=True))
    assert text(left["a"]) == text(KEPT["a"]) and text(left["b"]) == "00000"
    assert all(torch.equal(before[n], KEPT[n]) for n in KEPT)
    assert drop(KEPT, {}, Event(1, 0.5, regrow=1.0)).keys() == KEPT.keys()


# Regrowing


def test_every_group_regrows_what_it_dropped_the_just_dropped_among_the_candidates() -> None:
    left = drop(KEPT, WORTH, Event(1, 0.5, regrow=0.5))
    promise = numbers(a=[99, 3, 99, 1, 99, 3], b=[0, 0, 0, 0, 1])
    count = added(KEPT, left, promise, Event(1, 0.5, regrow=0.5))
    assert count == {"a": 2, "b": 2}
    new = grow(left, promise, count)
    assert {n: text(m) for n, m in new.items()} == {"a": "111011", "b": "11101"}


def test_jointly_the_most_promising_of_all_groups_come() -> None:
    left = masks(a="100000", b="00000")
    promise = numbers(a=[99, 3, 9, 1, 3, 3], b=[0, 3, 8, 0, 1])
    event = Event(1, 0.5, regrow=0.5, jointly=True)
    count = added(masks(a="111000", b="11000"), left, promise, event)  # four: 9, 8, 3, 3; of equals the earlier
    assert count == {"a": 3, "b": 1}
    assert {n: text(m) for n, m in grow(left, promise, count).items()} == {"a": "111010", "b": "00100"}


def test_by_shares_as_far_as_there_is_room() -> None:
    left = masks(a="110", b="000000")
    was = masks(a="111", b="111000")
    count = added(was, left, numbers(a=[0, 0, 0], b=[0] * 6), Event(1, 0.5), {"a": 9.0, "b": 1.0})
    assert count == {"a": 1, "b": 3}


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**31), st.booleans(), st.booleans(), st.booleans(), st.floats(0, 1))
def test_the_number_of_units_never_changes(seed: int, across: bool, jointly: bool, spread: bool, share: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    sizes = {"a": (3, 4), "b": (7,), "c": (1, 1), "d": (5, 2)}
    kept = {n: torch.rand(s, generator=draw) < 0.6 for n, s in sizes.items()}
    worth, promise = ({n: torch.rand(s, generator=draw).round(decimals=1) for n, s in sizes.items()} for _ in range(2))
    event = Event(1, 0.5, regrow=share, across=across, jointly=jointly)
    left = drop(kept, worth, event, {"b": 2})
    shares = {n: float(torch.rand((), generator=draw)) for n in sizes} if spread else None
    new = grow(left, promise, added(kept, left, promise, event, shares))
    total = sum(int(m.sum()) for m in kept.values())
    assert sum(int(m.sum()) for m in new.values()) == total
    assert all(bool((new[n] | ~left[n]).all()) and new[n].shape == kept[n].shape for n in sizes)
    if not (across or jointly or spread):
        assert all(int(new[n].sum()) == int(kept[n].sum()) for n in sizes)
