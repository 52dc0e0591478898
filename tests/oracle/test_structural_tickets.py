"""Masks made coarser: refilled filters, regrouped strips, clusters; against loops and planted structure."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.groups import Group, Member
from prunus.parts.allocation import Clustered, GlobalRanking, Refill, Regroup, Uniform
from prunus.parts.allocation.clustered import cocluster
from prunus.parts.schedule import OneShot


def space(**scores: Tensor) -> dict[str, Group]:
    return {n: Group(n, tuple(s.shape), (Member(n),), weight=tuple(s.shape), kind="weight") for n, s in scores.items()}


@pytest.mark.parametrize("more", [0.0, 0.5])
def test_refill_keeps_the_filters_with_most_kept_weights(more: float) -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(6, 10, dtype=torch.float64), "b": torch.rand(5, 4, dtype=torch.float64)}
    masks = Refill(GlobalRanking(), more=more)(scores, 0.35, space(**scores))
    everything = sorted((float(x) for s in scores.values() for x in s.reshape(-1)), reverse=True)
    threshold = everything[int(0.35 * 80 + 0.5) - 1]
    for name, s in scores.items():
        rows, columns = s.shape
        counts = [(sum(float(x) >= threshold for x in row), sum(float(x) for x in row if x >= threshold)) for row in s]
        total = sum(c for c, _ in counts)
        n = -(-total // columns)  # the share of the filters, rounded up
        n += int(more * (rows - n))
        best = sorted(range(rows), key=lambda r: (-counts[r][0], -counts[r][1], r))[:n]
        best = [r for r in best if counts[r][0]]
        assert [bool(row.all()) for row in masks[name]] == [r in best for r in range(rows)]
        assert [bool(row.any()) for row in masks[name]] == [r in best for r in range(rows)]


def test_filters_that_are_gone_do_not_come_back() -> None:
    scores = torch.rand(4, 5)
    scores[:3] = -torch.inf
    mask = Refill(more=0.9)({"w": scores}, 0.9, space(w=scores))["w"]
    assert mask.any(1).tolist() == [False, False, False, True]


def planted(rows: list[list[int]], columns: list[list[int]], shape: tuple[int, int]) -> Tensor:
    """Scores that are large where a row's and a column's cluster agree."""
    torch.manual_seed(1)
    scores = torch.rand(shape, dtype=torch.float64) * 0.1
    for r, c in zip(rows, columns, strict=True):
        for i, j in itertools.product(r, c):
            scores[i, j] += 1.0
    return scores


ROWS = [[0, 3, 5, 6], [1, 2, 4, 7]]
COLUMNS = [[1, 4, 5], [0, 2, 3]]


def test_regroup_finds_filters_that_keep_the_same_columns() -> None:
    scores = planted(ROWS, COLUMNS, (8, 6))
    mask = Regroup(Uniform(), rows=4)({"w": scores}, 0.5, space(w=scores))["w"]
    expected = torch.zeros(8, 6, dtype=torch.bool)
    for r, c in zip(ROWS, COLUMNS, strict=True):
        for i, j in itertools.product(r, c):
            expected[i, j] = True
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("density", [0.2, 0.35, 0.6])
def test_regrouped_strips_are_the_best_for_their_groups(density: float) -> None:
    """Groups of equal size: no other strips of these groups hold more of the kept weights."""
    torch.manual_seed(2)
    scores = torch.rand(8, 5, dtype=torch.float64)
    fine = Uniform()({"w": scores}, density, space(w=scores))["w"]
    mask = Regroup(Uniform(), rows=4)({"w": scores}, density, space(w=scores))["w"]
    for first in itertools.combinations(range(8), 4):
        groups = [list(first), [r for r in range(8) if r not in first]]
        if all((mask[g] == mask[g[0]]).all() for g in groups):
            break
    else:
        raise AssertionError("no two groups of four filters share their columns")
    strips = int(fine.sum()) // 4
    assert mask.sum() == 4 * strips
    held = sorted((int(fine[g, c].sum()) for g in groups for c in range(5)), reverse=True)
    assert int((mask & fine).sum()) == sum(held[:strips])


def test_clusters_are_bounded_and_found() -> None:
    scores = planted(ROWS, COLUMNS, (8, 6)) - 0.05
    rows, columns = cocluster(scores.clamp(min=0.0), 4)
    assert [set(rows[r].tolist()) for r in ROWS] == [{int(rows[r[0]])} for r in ROWS]
    assert [int(columns[c[0]]) for c in COLUMNS] == [int(rows[r[0]]) for r in ROWS]
    for size in (1, 2, 3):
        rows, columns = cocluster(scores.clamp(min=0.0), size)
        assert max(*rows.bincount().tolist(), *columns.bincount().tolist()) <= size


def test_what_lies_outside_of_clusters_goes_first_and_counts_are_exact() -> None:
    scores = planted(ROWS, COLUMNS, (8, 6))
    scores[0, 0] = 9.0  # the largest of all, outside of every cluster
    fine = Uniform()({"w": scores}, 0.4, space(w=scores))["w"]
    mask = Clustered(Uniform(), size=4)({"w": scores}, 0.4, space(w=scores))["w"]
    inside = torch.zeros(8, 6, dtype=torch.bool)
    for r, c in zip(ROWS, COLUMNS, strict=True):
        for i, j in itertools.product(r, c):
            inside[i, j] = True
    assert mask.sum() == fine.sum() and fine[0, 0] and not mask[0, 0]
    best = sorted(scores[inside].tolist(), reverse=True)[: int(fine.sum())]
    assert sorted(scores[mask].tolist(), reverse=True) == best
    # With more than fits into clusters the best of the rest stay as well.
    most = Clustered(Uniform(), size=4)({"w": scores}, 0.75, space(w=scores))["w"]
    assert (most | ~inside).all() and most[0, 0] and most.sum() == 36


def test_a_density_of_one_keeps_everything_and_channels_do_not_fit() -> None:
    scores = torch.rand(4, 4)
    for allocate in (Refill(), Regroup(), Clustered()):
        assert allocate({"w": scores}, 1.0, space(w=scores))["w"].all()
        assert not allocate.fits((4,), (4, 4)) and allocate.pattern
    with pytest.raises(SpecError):
        Refill(more=1.0)
    with pytest.raises(SpecError):
        Regroup(rows=0)
    with pytest.raises(SpecError):
        Clustered(size=0)


def test_rounds_rewind_what_is_refilled_to_its_first_values() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    first = net[0].weight.detach().clone()
    x = torch.randn(8, 6, dtype=torch.float64)
    task = prunus.Task(loss=lambda model, batch: model(batch).square().mean(), train=[x])
    for name in ("refill", "regroup"):
        session = prunus.Session(net, name, task, sparsity=0.5, steps=8)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        session.attach(optimizer)
        for _ in range(8):
            if session.fired and session.history[-1]["step"] == session.step:
                mask = session.masks["0.weight"]
                assert torch.equal(net[0].weight.detach(), first * mask)
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        session.detach()
        with torch.no_grad():
            net[0].weight.copy_(first)
    assert replace(methods.refill, schedule=OneShot()).when == "before"
