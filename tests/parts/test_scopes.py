"""Ranking scopes: across the network, within a layer, among groups of one structure; and scores made comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.groups import Group, Member
from prunus.core.part import Masks
from prunus.parts.allocation import GlobalRanking, Isomorphic, Uniform
from prunus.parts.allocation.isomorphic import form
from prunus.parts.allocation.selection import Rounding, kept
from prunus.parts.allocation.together import Normalize, normalized
from tests.parts.conftest import random_scores, space_of

quick = settings(deadline=None, max_examples=60)
ROUNDINGS: tuple[Rounding, ...] = ("floor", "nearest", "ceil")
DIVISORS: tuple[Normalize, ...] = ("none", "mean", "max", "sum")


def conv(name: str, units: int, *more: Member, kind: str = "channel", **demands: int) -> Group:
    """A convolution's channels with bias and consumer, and whatever else goes with them."""
    members = (
        Member(f"{name}.weight", 0),
        Member(f"{name}.bias", 0, None, "bias"),
        Member(f"{name}.next", 1, None, "in"),
    )
    return Group(name, (units,), (*members, *more), weight=(units, 3, 3, 3), kind=kind, **demands)


def normed(name: str, units: int) -> Group:
    """The same with a normalization behind it, its members in another order."""
    plain = conv(name, units)
    norm = (Member(f"{name}.g", 0, None, "scale"), Member(f"{name}.b", 0, None, "shift"))
    return Group(name, (units,), (*norm, *reversed(plain.members)), weight=plain.weight)


def rows(units: int, each: int) -> Tensor:
    return torch.arange(units * each).reshape(units, each)


PLAIN, NORMED = conv("plain", 8), normed("normed", 12)
MIXED = space_of(PLAIN, NORMED, conv("other", 10), normed("last", 6), conv("heads", 4, kind="head"))
CLASSES = [["plain", "other"], ["normed", "last"], ["heads"]]


# What is isomorphic


def test_names_sizes_and_order_do_not_make_a_form() -> None:
    turned = Group("x", (3,), tuple(reversed(PLAIN.members)), weight=(3, 9, 1, 1))
    assert form(turned) == form(PLAIN) == form(conv("another", 64, at_least=2, multiple=8))


@pytest.mark.parametrize(
    "other",
    [
        NORMED,
        conv("a", 8, kind="head"),
        conv("a", 8, Member("a.second", 0)),
        conv("a", 8, Member("a.again", 1, None, "in")),
        conv("a", 8, parts=2),
        conv("a", 8, Member("a.mean", 0, None, "other", True)),
        Group("a", (8,), PLAIN.members, weight=(8, 3)),
        Group("a", (8,), (*PLAIN.members[:2], Member("a.next", 1, rows(8, 49), "in")), weight=(8, 3, 3, 3)),
        Group("a", (8,), (*PLAIN.members[:2], Member("a.next", 0, None, "in")), weight=(8, 3, 3, 3)),
        Group("a", (8,), (*PLAIN.members[:2], Member("a.next", None, None, "in", unit=0)), weight=(8, 3, 3, 3)),
    ],
    ids=["norm", "kind", "two producers", "two consumers", "parts", "buffer", "rank", "flatten", "axis", "whole"],
)
def test_structure_makes_a_form(other: Group) -> None:
    assert form(other) != form(PLAIN)


# Isomorphic ranking, re-derived slowly


def alike(a: Group, b: Group) -> bool:
    """Every member of one finds a partner of its own in the other."""
    if (a.kind, len(a.weight), a.parts > 1) != (b.kind, len(b.weight), b.parts > 1):
        return False
    left = list(b.members)
    for m in a.members:
        for other in left:
            width = [1 if x.index is None else x.index.shape[1] for x in (m, other)]
            same = (m.role, m.dim, m.buffer) == (other.role, other.dim, other.buffer)
            if same and (width[0] > 1) == (width[1] > 1) and (m.unit is None) == (other.unit is None):
                left.remove(other)
                break
        else:
            return False
    return not left


def slow(scores: Mapping[str, Tensor], density: float, space: Mapping[str, Group], rounding: Rounding) -> Masks:
    """Unit by unit, without constraints."""
    masks = {n: torch.zeros(s.shape, dtype=torch.bool) for n, s in scores.items()}
    todo = list(scores)
    while todo:
        own = [n for n in todo if alike(space[todo[0]], space[n])]
        todo = [n for n in todo if n not in own]
        units = [(-float(s), i, n, u) for i, n in enumerate(own) for u, s in enumerate(scores[n].tolist())]
        for worth, _, n, u in sorted(units, key=lambda e: e[:2])[: kept(density, len(units), rounding)]:
            masks[n][u] = worth < math.inf
    return masks


@quick
@given(st.floats(0.0, 1.0), st.integers(0, 2**31), st.sampled_from([0, 3]), st.sampled_from(ROUNDINGS))
def test_isomorphic_is_what_it_says(density: float, seed: int, levels: int, rounding: Rounding) -> None:
    scores = random_scores(MIXED, seed, levels)
    found = Isomorphic(rounding)(scores, density, MIXED)
    expected = slow(scores, density, MIXED, rounding)
    assert list(found) == list(scores)
    assert all(torch.equal(found[n], expected[n]) for n in scores)
    for names in CLASSES:
        units = sum(MIXED[n].units for n in names)
        assert sum(int(found[n].sum()) for n in names) == kept(density, units, rounding)


def test_one_class_is_global_and_no_two_alike_is_uniform() -> None:
    same = space_of(conv("a", 8), conv("b", 12))
    scores = random_scores(same, 1)
    one, every = Isomorphic()(scores, 0.3, same), GlobalRanking()(scores, 0.3, same)
    assert all(torch.equal(one[n], every[n]) for n in scores)
    apart = space_of(PLAIN, NORMED, MIXED["heads"])
    scores = random_scores(apart, 2)
    one, every = Isomorphic()(scores, 0.3, apart), Uniform()(scores, 0.3, apart)
    assert all(torch.equal(one[n], every[n]) for n in scores)


def test_a_class_cannot_crowd_out_another() -> None:
    """What a global ranking does to structures whose scores are on another scale, and this one does not."""
    scores = {n: s + (100 if n in CLASSES[0] else 0) for n, s in random_scores(MIXED, 3).items()}
    everywhere = GlobalRanking()(scores, 0.45, MIXED)
    assert [n for n, m in everywhere.items() if m.any()] == CLASSES[0]
    assert all(bool(everywhere[n].all()) for n in CLASSES[0])
    counts = {n: int(m.sum()) for n, m in Isomorphic()(scores, 0.45, MIXED).items()}
    assert [sum(counts[n] for n in names) for names in CLASSES] == [9, 9, 2]


def test_pruned_units_do_not_come_back() -> None:
    scores = random_scores(MIXED, 4)
    once = Isomorphic()(scores, 0.5, MIXED)
    gone = {n: s.masked_fill(~once[n], -torch.inf) for n, s in scores.items()}
    assert all(torch.equal(m, once[n]) for n, m in Isomorphic()(gone, 0.5, MIXED).items())
    assert all(not (m & ~once[n]).any() for n, m in Isomorphic(normalize="mean")(gone, 0.3, MIXED).items())


# Scores made comparable


def test_divisors_by_hand() -> None:
    scores = {"a": torch.tensor([1.0, -3.0, -torch.inf]), "z": torch.zeros(2), "gone": torch.full((2,), -torch.inf)}
    expected = {"mean": [0.5, -1.5], "max": [1 / 3, -1.0], "sum": [0.25, -0.75], "none": [1.0, -3.0]}
    for by in DIVISORS:
        found = normalized(scores, by)
        assert found["a"].tolist() == pytest.approx([*expected[by], -math.inf])
        assert found["z"].tolist() == [0.0, 0.0] and found["gone"].tolist() == [-math.inf] * 2


@quick
@given(st.floats(0.0, 1.0), st.integers(0, 2**31), st.sampled_from(DIVISORS))
def test_normalized_global_ranking_is_what_it_says(density: float, seed: int, by: Normalize) -> None:
    space = space_of(conv("a", 5), conv("b", 9), conv("c", 3))
    scores = {n: s * 10.0**i for i, (n, s) in enumerate(random_scores(space, seed).items())}
    units = []
    for i, s in enumerate(scores.values()):
        sizes = [abs(v) for v in s.tolist()]
        divisor = {"none": 1.0, "mean": math.fsum(sizes) / len(sizes), "max": max(sizes), "sum": math.fsum(sizes)}[by]
        units += [(-v / divisor, i, u) for u, v in enumerate(s.tolist())]
    best = {(i, u) for _, i, u in sorted(units)[: kept(density, 17)]}
    masks = list(GlobalRanking(normalize=by)(scores, density, space).values())
    assert {(i, u) for i, m in enumerate(masks) for u in m.nonzero().reshape(-1).tolist()} == best


@pytest.mark.parametrize("by", DIVISORS[1:])
def test_a_layers_scale_does_not_matter_any_more(by: Normalize) -> None:
    space = space_of(conv("a", 16), conv("b", 32))
    scores = random_scores(space, 5)
    scaled = {"a": scores["a"] * 1024.0, "b": scores["b"] / 8.0}  # powers of two: no rounding in between
    plain, moved = (GlobalRanking(normalize=by)(s, 0.4, space) for s in (scores, scaled))
    assert all(torch.equal(plain[n], moved[n]) for n in space)
    assert not torch.equal(GlobalRanking()(scores, 0.4, space)["b"], GlobalRanking()(scaled, 0.4, space)["b"])


@pytest.mark.parametrize("part", [GlobalRanking(), Isomorphic()], ids=repr)
def test_a_divisor_that_there_is_none_of_is_refused(part: GlobalRanking | Isomorphic) -> None:
    object.__setattr__(part, "normalize", "median")  # as a file may say it: calls from Python are type-checked here
    with pytest.raises(SpecError, match=r"normalize='median'.*mean, max, sum"):
        part.__post_init__()
