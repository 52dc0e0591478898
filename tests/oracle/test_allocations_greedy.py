"""Redundancy of graphs by brute force, power laws by a closed form, affine rankings by sorting."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.parts.allocation import GlobalRanking, LearnedAffine, PowerLaw, StructuralRedundancy
from prunus.parts.allocation.power_law import fitted
from prunus.parts.allocation.redundancy import components, covering, neighbours
from tests.oracle.test_allocations import channels, counts, drawn


def graph(n: int, edges: list[tuple[int, int]]) -> np.ndarray:
    near = np.eye(n, dtype=bool)
    for a, b in edges:
        near[a, b] = near[b, a] = True
    return near


def reached(near: np.ndarray, start: int) -> frozenset[int]:
    seen, todo = set(), [start]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [int(k) for k in near[node].nonzero()[0]]
    return frozenset(seen)


def smallest_cover(near: np.ndarray) -> int:
    n = len(near)
    return next(
        k
        for k in range(1, n + 1)
        if any(near[list(nodes)].any(0).all() for nodes in itertools.combinations(range(n), k))
    )


@pytest.mark.parametrize("seed", range(12))
def test_components_are_exact_and_the_cover_is_within_the_greedy_bound(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = int(generator.integers(2, 9))
    edges = [e for e in itertools.combinations(range(n), 2) if generator.random() < 0.25]
    near = graph(n, edges)
    assert components(near) == len({reached(near, i) for i in range(n)})
    best, found = smallest_cover(near), covering(near)
    assert best <= found <= best * (1 + math.log(n))
    assert near[[0]].shape and components(near) <= found <= n


def test_stars_and_cliques_are_covered_by_one_node_each() -> None:
    near = graph(8, [(0, 1), (0, 2), (0, 3), (4, 5), (5, 6), (4, 6)])
    assert (components(near), covering(near)) == (3, 3)
    path = graph(6, [(i, i + 1) for i in range(5)])
    assert (components(path), covering(path), smallest_cover(path)) == (1, 2, 2)


def test_filters_are_compared_at_unit_length() -> None:
    w = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    near = neighbours(w, 0.5)  # distances up to 0.5 sqrt(2) = 0.707
    assert near.tolist() == graph(4, [(0, 1), (2, 3)]).tolist()  # |(0,1) - (.6,.8)| = 0.632, |(1,0) - (.6,.8)| = 0.894


def test_the_most_redundant_layer_loses_its_smallest_filter_first() -> None:
    """Every step by hand: all redundancies anew from the definition, with the exact cover."""
    torch.manual_seed(0)
    directions = torch.eye(6, dtype=torch.float64)
    lengths = torch.rand(3, 6, dtype=torch.float64) + 0.5
    # l0: six different filters; l1: three pairs; l2: four alike and two others.
    shown = {"l0": [0, 1, 2, 3, 4, 5], "l1": [0, 0, 1, 1, 2, 2], "l2": [0, 0, 0, 0, 1, 2]}
    weights = {n: directions[d] * lengths[i, :, None] for i, (n, d) in enumerate(shown.items())}
    scores = {n: w.abs().sum(1) for n, w in weights.items()}
    space = channels(6, 6, 6)
    part = StructuralRedundancy(gamma=0.1, cover=0.65)
    left = {n: list(range(6)) for n in space}
    for removed in range(1, 14):
        worth = {}
        for n, kept in left.items():
            kinds = len({shown[n][i] for i in kept})  # components and cover are both the number of different directions
            worth[n] = (len(kept) / kinds, len(kept) / 6)
        name = max((n for n in left if len(left[n]) > 1), key=lambda n: worth[n])
        left[name].remove(min(left[name], key=lambda i: float(scores[name][i])))
        masks = part(scores, (18 - removed) / 18, space, weights=weights)
        assert {n: m.nonzero().squeeze(1).tolist() for n, m in masks.items()} == left


def test_redundancy_is_of_whole_filters() -> None:
    space = channels(4)
    with pytest.raises(SpecError, match="whole filters"):
        StructuralRedundancy()({"l0": torch.rand(2, 2)}, 0.5, space, weights={"l0": torch.rand(2, 2, 1)})


# Power laws


def test_the_fit_is_a_straight_line_in_logarithms() -> None:
    rng = np.random.default_rng(0)
    widths = rng.integers(1, 90, (9, 3)).astype(float)
    alpha, beta = fitted(widths)
    x = np.log(widths.sum(1))
    for layer in range(3):
        slope, offset = np.polyfit(x, np.log(widths[:, layer]), 1)
        assert beta[layer] == pytest.approx(slope) and alpha[layer] == pytest.approx(offset)


@pytest.mark.parametrize("density", [0.15, 0.4, 0.75])
def test_widths_follow_the_law_of_the_allocation_inside(density: float) -> None:
    space = channels(200, 300, 100)
    scores = {n: s ** (i + 1) for i, (n, s) in enumerate(drawn(space).items())}
    part = PowerLaw(points=12, lowest=0.05)
    path = [0.05 ** (i / 11) for i in range(12)]
    inner = np.array(
        [[max(1, c) for c in counts(GlobalRanking()(scores, d, space)).values()] for d in path], dtype=float
    )
    alpha, beta = fitted(inner)
    kept = counts(part(scores, density, space))
    total = sum(kept.values())
    assert total == round(600 * density)
    tau = next(
        t
        for t in np.linspace(0, 9, 90001)
        if sum(min(g.units, math.exp(a + b * t)) for g, a, b in zip(space.values(), alpha, beta, strict=True)) >= total
    )
    for (_name, k), g, a, b in zip(kept.items(), space.values(), alpha, beta, strict=True):
        assert abs(k - min(g.units, math.exp(a + b * tau))) <= 1.1


# Learned affine maps


def test_scaled_and_shifted_scores_are_ranked_together() -> None:
    space = channels(5, 5, 5, least=0)
    scores = drawn(space)
    part = LearnedAffine(("l2", "l0"), (0.5, 3.0), (0.4, -0.1))
    ranked = sorted(
        (
            (
                3.0 * float(s) ** 2 - 0.1 if n == "l0" else 0.5 * float(s) ** 2 + 0.4 if n == "l2" else float(s) ** 2,
                n,
                i,
            )
            for n, layer in scores.items()
            for i, s in enumerate(layer)
        ),
        reverse=True,
    )
    masks = part(scores, 0.4, space)
    keep = {(n, i) for _, n, i in ranked[:6]}
    assert {(n, i) for n, m in masks.items() for i in m.nonzero().squeeze(1).tolist()} == keep


def test_affine_numbers_are_checked() -> None:
    with pytest.raises(SpecError, match="one of each"):
        LearnedAffine(("a",), (1.0, 2.0), (0.0,))
    with pytest.raises(SpecError, match="positive"):
        LearnedAffine(("a",), (-1.0,), (0.0,))
    with pytest.raises(SpecError, match="not here"):
        LearnedAffine(("other",), (1.0,), (0.0,))(drawn(channels(3)), 0.5, channels(3))


def test_pruned_units_stay_pruned_whatever_is_added() -> None:
    space = channels(3, 3, least=0)
    scores: dict[str, Tensor] = {"l0": torch.tensor([-torch.inf, 1.0, 2.0]), "l1": torch.tensor([0.1, 0.2, 0.3])}
    masks = LearnedAffine(("l0",), (1.0,), (100.0,))(scores, 0.5, space)
    assert masks["l0"].tolist() == [False, True, True] and counts(masks)["l1"] == 1
