"""Reconstructions of whole units against refits for every choice, and against the formulas of their papers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prunus.core.errors import PrunusWarning
from prunus.core.layer import Layer
from prunus.parts.reconstruct import GroupObs, MaskRescale, Merge, Osscar
from tests.oracle.linear import fitted, inputs, lost, run, units_layer


def cost_of(layer: Layer, left: list[int], each: int, x: Tensor) -> float:
    keep = torch.isin(torch.arange(x.shape[1]) // each, torch.tensor(left)).expand(len(layer.w), -1)
    return lost(layer, fitted(layer, keep, x), x)


@pytest.mark.parametrize("each", [1, 3])
def test_group_obs_is_literal_greedy_with_refits(each: int) -> None:
    x = inputs(80, 6 * each)
    layer = units_layer(x, 4, each, [0, 1])
    update = run(GroupObs(damp=0.0), layer)
    left = list(range(6))
    while len(left) > 2:
        left.remove(min(left, key=lambda u: cost_of(layer, [v for v in left if v != u], each, x)))
    assert update.keep[0].reshape(6, each).all(1).nonzero().squeeze(1).tolist() == left
    assert torch.allclose(update.w, fitted(layer, update.keep, x), atol=1e-8)


@pytest.mark.parametrize(("each", "seed"), [(1, 0), (1, 5), (3, 0), (3, 6)])
def test_osscar_ends_where_no_swap_helps_and_no_worse_than_greedy(each: int, seed: int) -> None:
    x = inputs(80, 7 * each, seed)
    layer = units_layer(x, 4, each, [0, 1, 2], seed=seed + 1)
    greedy, update = run(GroupObs(damp=0.0), layer), run(Osscar(damp=0.0, at_once=2, swaps=2), layer)
    left = update.keep[0].reshape(7, each).all(1).nonzero().squeeze(1).tolist()
    reached = lost(layer, update.w, x)
    assert len(left) == 3 and reached == pytest.approx(cost_of(layer, left, each, x), abs=1e-9)
    assert reached <= lost(layer, greedy.w, x) * 1.2 + 1e-9
    best = min(cost_of(layer, list(s), each, x) for s in itertools.combinations(range(7), 3))
    assert best - 1e-9 <= reached
    # No round raises the error, and more rounds never end higher.
    errors = [lost(layer, run(Osscar(damp=0.0, at_once=2, swaps=2, rounds=n), layer).w, x) for n in range(4)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(errors))


def test_the_gain_of_a_unit_that_comes_back_is_what_refitting_says() -> None:
    from prunus.parts.reconstruct.solve import Removal
    from prunus.parts.reconstruct.units import gained

    x = inputs(80, 10)
    layer = units_layer(x, 4, 2, [0, 1, 2, 3, 4])
    removal = Removal(layer.w, layer.gram, layer.columns)
    removal.remove(torch.tensor([1, 3, 4]))
    gains = gained(layer, layer.gram, removal)
    for unit in (1, 3, 4):
        expected = cost_of(layer, [0, 2], 2, x) - cost_of(layer, [0, 2, unit], 2, x)
        assert float(gains[unit]) == pytest.approx(expected)
    rises = removal.losses()
    for unit, other in ((0, 2), (2, 0)):
        assert float(rises[unit]) == pytest.approx(cost_of(layer, [other], 2, x) - cost_of(layer, [0, 2], 2, x))


@pytest.mark.parametrize("part", [GroupObs(), Osscar(), Osscar(at_once=3)])
def test_parts_keep_equally_many(part: object) -> None:
    x = inputs(80, 8)
    layer = replace(units_layer(x, 4, 1, [0, 1, 4, 5]), parts=2)
    keep = run(part, layer).keep[0]
    assert int(keep[:4].sum()) == int(keep[4:].sum()) == 2


def test_columns_of_no_unit_are_left_in_and_fitted() -> None:
    x = inputs(80, 8)
    layer = units_layer(x, 4, 1, [0, 1, 2, 6, 7])
    unit = torch.where(torch.arange(8) < 6, torch.arange(8), -1)
    layer = replace(layer, unit=unit)
    for part in (GroupObs(damp=0.0), Osscar(damp=0.0)):
        update = run(part, layer)
        assert update.keep[:, 6:].all() and int(update.keep[0, :6].sum()) == 3
        assert torch.allclose(update.w, fitted(layer, update.keep, x), atol=1e-8)


# One number per unit


@pytest.mark.parametrize("each", [1, 2])
def test_mask_rescale_is_least_squares_over_one_number_per_unit(each: int) -> None:
    x = inputs(80, 6 * each)
    layer = units_layer(x, 4, each, [0, 2, 3, 5])
    update = run(MaskRescale(damp=0.0), layer)
    parts = [x[:, layer.unit == u] @ layer.w[:, layer.unit == u].T for u in (0, 2, 3, 5)]
    a = torch.stack([p.flatten() for p in parts], 1)
    scale = torch.linalg.lstsq(a, (x @ layer.w.T).flatten().unsqueeze(1)).solution.squeeze(1)
    for u, s in zip((0, 2, 3, 5), scale, strict=True):
        assert torch.allclose(update.w[:, layer.unit == u], s * layer.w[:, layer.unit == u])
    assert (update.w[~layer.keep] == 0).all()


def test_mask_rescale_refuses_wild_scales() -> None:
    x = inputs(80, 4)
    layer = units_layer(x, 3, 1, [0])
    wild = layer.w.clone()
    wild[:, 1:] = 100 * wild[:, :1]
    layer = replace(layer, w=wild)
    with pytest.warns(PrunusWarning, match="not rescaled"):
        update = run(MaskRescale(), layer)
    assert torch.equal(update.w, layer.w * layer.keep)
    assert not torch.equal(run(MaskRescale(most=1e9), layer).w, update.w)


def test_twins_merge_without_loss() -> None:
    """What centripetal SGD makes: identical filters, removed by adding up what reads them."""
    x = inputs(80, 6)
    x[:, 4] = x[:, 1]
    x[:, 5] = 2 * x[:, 1]  # through ReLU, a filter twice as long
    layer = units_layer(x, 4, 1, [0, 1, 2, 3])
    made = torch.randn(6, 5, dtype=torch.float64)
    made[4], made[5] = made[1], 2 * made[1]
    layer = replace(layer, made_by=made)
    for like in ("weights", "inputs"):
        update = run(Merge(like=like), layer)
        assert torch.allclose(x @ update.w.T, x @ layer.w.T)


def test_neuron_merging_by_its_own_formula() -> None:
    """Of each removed neuron the kept one of largest cosine takes over, times the ratio of lengths."""
    x = inputs(80, 5).relu()
    layer = replace(units_layer(x, 3, 1, [0, 2, 3]), made_by=torch.randn(5, 4, dtype=torch.float64))
    made = layer.made_by
    expected = layer.w * layer.keep
    for r in (1, 4):
        cosines = {k: float(made[r] @ made[k] / made[r].norm() / made[k].norm()) for k in (0, 2, 3)}
        k = max(cosines, key=cosines.__getitem__)
        if cosines[k] >= 0.1:
            expected[:, k] += made[r].norm() / made[k].norm() * layer.w[:, r]
    assert torch.allclose(run(Merge(like="weights", threshold=0.1), layer).w, expected)
    assert torch.equal(run(Merge(like="weights", threshold=1.0), layer).w, layer.w * layer.keep)


def test_the_fitted_merge_is_the_best_multiple_of_the_one_it_goes_into() -> None:
    x = inputs(80, 4)
    layer = units_layer(x, 3, 1, [0, 1, 2])
    update = run(Merge(like="inputs", threshold=-1.0), layer)
    cosines = [float(x[:, 3] @ x[:, k] / x[:, 3].norm() / x[:, k].norm()) for k in range(3)]
    k = max(range(3), key=cosines.__getitem__)
    scale = torch.linalg.lstsq(x[:, k : k + 1], x[:, 3:]).solution
    expected = layer.w * layer.keep
    expected[:, k] += scale.squeeze() * layer.w[:, 3]
    assert torch.allclose(update.w, expected)
