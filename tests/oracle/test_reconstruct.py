"""Reconstructions of single weights against least squares on the inputs themselves, literal loops, and brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prunus.core.errors import PrunusWarning, SpecError
from prunus.core.layer import Layer
from prunus.parts.reconstruct import (
    BiasCompensation,
    ExactObs,
    GroupObs,
    LeastSquares,
    MaskRescale,
    Merge,
    ObsUpdate,
    Osscar,
)
from tests.oracle.linear import fitted, inputs, layer_of, lost, run, units_layer


def test_least_squares_is_the_optimum_on_scattered_supports() -> None:
    x = inputs(60, 9)
    layer = layer_of(x, 5)
    update = run(LeastSquares(damp=0.0), layer)
    assert torch.allclose(update.w, fitted(layer, layer.keep, x), atol=1e-9)
    assert torch.equal(update.keep, layer.keep) and (update.w[~layer.keep] == 0).all()


def test_least_squares_is_the_optimum_on_whole_columns() -> None:
    x = inputs(60, 9)
    layer = units_layer(x, 5, 3, [0, 2])
    assert torch.allclose(run(LeastSquares(damp=0.0), layer).w, fitted(layer, layer.keep, x), atol=1e-9)


def test_damping_is_a_pull_towards_the_weights_as_they_were() -> None:
    """Ridge regression around w: further samples sqrt(n lambda) e_j with the outputs that w gives."""
    x = inputs(60, 9)
    layer = layer_of(x, 5)
    level = 0.3 * float(layer.gram.diagonal().mean())
    more = torch.cat([x, math.sqrt(level * len(x)) * torch.eye(9, dtype=torch.float64)])
    assert torch.allclose(run(LeastSquares(damp=0.3), layer).w, fitted(layer, layer.keep, more), atol=1e-9)


def test_the_intercept_is_fitted_too() -> None:
    x = inputs(60, 9)
    layer = layer_of(x, 4)
    update = run(LeastSquares(damp=0.0, intercept=True), layer)
    ones = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1)
    y = x @ layer.w.T + layer.bias
    for row in range(4):
        s = torch.cat([layer.keep[row].nonzero().squeeze(1), torch.tensor([9])])
        found = torch.linalg.lstsq(ones[:, s], y[:, row : row + 1]).solution.squeeze(1)
        assert torch.allclose(update.w[row, s[:-1]], found[:-1], atol=1e-9)
        assert torch.allclose(update.bias[row], found[-1], atol=1e-9)


def test_an_empty_row_stays_empty() -> None:
    x = inputs(60, 6)
    keep = torch.ones(3, 6, dtype=torch.bool)
    keep[1] = False
    for part in (LeastSquares(), ObsUpdate(select="masks"), BiasCompensation(), MaskRescale()):
        update = run(part, layer_of(x, 3, keep))
        assert (update.w[1] == 0).all() and torch.isfinite(update.w).all()


@pytest.mark.parametrize("part", [LeastSquares(damp=0.0), ExactObs(damp=0.0), GroupObs(damp=0.0), Osscar(damp=0.0)])
def test_inputs_that_depend_on_each_other_are_damped_and_named(part: object) -> None:
    x = inputs(4, 8)  # fewer samples than inputs
    layer = units_layer(x, 3, 2, [0, 3])
    with pytest.warns(PrunusWarning, match="fc.weight are linearly dependent"):
        update = run(part, layer)
    assert torch.isfinite(update.w).all() and lost(layer, update.w, x) < lost(layer, layer.w * layer.keep, x)


def test_bias_compensation_keeps_the_mean_output() -> None:
    x = inputs(60, 9)
    layer = layer_of(x, 5)
    update = run(BiasCompensation(), layer)
    assert torch.allclose((x @ update.w.T + update.bias).mean(0), (x @ layer.w.T + layer.bias).mean(0))
    assert torch.equal(update.w, layer.w * layer.keep)


# Column after column


def literal_sparsegpt(layer: Layer, damp: float, block: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Without lazy updates and without a Cholesky factor: H^-1 is downdated after every column, and everything behind
    it is updated at once. Of each block exactly as many stay as its share.
    """
    w, out, width = layer.w.clone(), *layer.w.shape
    h = layer.gram + damp * layer.gram.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    total, taken = int(layer.keep.sum()), 0
    chosen = torch.ones(out, width, dtype=torch.bool) if keep is None else keep
    # d[j]: the diagonal of the inverse once the columns before j are gone, which is what the factor's squares are.
    inverse = torch.linalg.inv(h)
    trailing = [inverse]
    for j in range(width):
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
        trailing.append(inverse)
    for j in range(width):
        if keep is None and j % block == 0:
            stop = min(j + block, width)
            k = round(total * stop / width) - taken
            scores = [(float(w[r, c] ** 2 / trailing[c][c, c]), -r, -c) for r in range(out) for c in range(j, stop)]
            best = {(-r, -c) for _, r, c in sorted(scores, reverse=True)[:k]}
            taken += k
            for r in range(out):
                for c in range(j, stop):
                    chosen[r, c] = (r, c) in best
        for r in range(out):
            if not chosen[r, j]:
                change = w[r, j] / trailing[j][j, j] * trailing[j][j]
                w[r, j:] -= change[j:]
                w[r, j] = 0.0
    return w, chosen


@pytest.mark.parametrize("block", [1, 4, 5, 12, 128])
def test_obs_update_against_a_literal_column_loop(block: int) -> None:
    layer = layer_of(inputs(80, 12), 6)
    update = run(ObsUpdate(block=block, damp=0.01), layer)
    w, keep = literal_sparsegpt(layer, 0.01, block)
    assert torch.equal(update.keep, keep) and int(keep.sum()) == int(layer.keep.sum())
    assert torch.allclose(update.w, w, atol=1e-9)


def test_obs_update_with_a_fixed_mask() -> None:
    layer = layer_of(inputs(80, 12), 6)
    update = run(ObsUpdate(block=4, select="masks"), layer)
    w, _ = literal_sparsegpt(layer, 0.01, 4, keep=layer.keep)
    assert torch.equal(update.keep, layer.keep) and torch.allclose(update.w, w, atol=1e-9)


def test_obs_update_is_worse_than_least_squares_on_its_own_support_and_better_than_zeroing() -> None:
    x = inputs(200, 16)
    layer = layer_of(x, 8)
    update = run(ObsUpdate(block=4), layer)
    best = fitted(layer, update.keep, x)
    assert lost(layer, best, x) <= lost(layer, update.w, x) < lost(layer, layer.w * update.keep, x)


@pytest.mark.parametrize("part", [ObsUpdate(block=6), ObsUpdate(block=128), ExactObs()])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_pattern_stays_one(part: object, kernel: int) -> None:
    """2 of 4 along the row, and along the input channels at each kernel position."""
    x = inputs(100, 24)
    block = torch.arange(24) // 4 if kernel == 1 else (torch.arange(24) // 12) * 3 + torch.arange(24) % 3
    keep = torch.zeros(5, 24, dtype=torch.bool)
    for b in block.unique():
        keep[:, (block == b).nonzero().squeeze(1)[:2]] = True
    layer = replace(layer_of(x, 5, keep), block=block)
    update = run(part, layer)
    assert layer.span == (4 if kernel == 1 else 12)
    for b in block.unique():
        assert (update.keep[:, block == b].sum(1) == 2).all()
    assert not torch.equal(update.keep, keep)
    assert lost(layer, update.w, x) < lost(layer, fitted(layer, keep, x), x)


def test_n_of_m_is_chosen_at_every_block_of_m() -> None:
    """The official code's rule: at column i with i % m == 0, the m - n of least w^2 / U_ii^2 of the next m go."""
    x = inputs(100, 12)
    block = torch.arange(12) // 4
    keep = torch.tensor([True, False, True, False] * 3).expand(5, -1).clone()
    layer = replace(layer_of(x, 5, keep), block=block)
    update = run(ObsUpdate(block=8), layer)
    h = layer.gram + 0.01 * layer.gram.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w = layer.w.clone()
    expected = torch.ones(5, 12, dtype=torch.bool)
    for i in range(12):
        if i % 4 == 0:
            scores = w[:, i : i + 4] ** 2 / u.diagonal()[i : i + 4] ** 2
            expected[:, i : i + 4].scatter_(1, scores.argsort(1)[:, :2], False)
        gone = torch.where(expected[:, i], 0.0, w[:, i]) / u[i, i]
        w[:, i:] -= gone.outer(u[i, i:])
    assert torch.equal(update.keep, expected)
    assert torch.allclose(update.w, w * expected, atol=1e-9)


def test_what_was_pruned_before_stays_pruned() -> None:
    x = inputs(100, 12)
    layer = layer_of(x, 6)
    allowed = torch.rand(6, 12, generator=torch.Generator().manual_seed(7)) > 0.2
    layer = replace(layer, w=layer.w * allowed, keep=layer.keep & allowed, allowed=allowed)
    for part in (ObsUpdate(block=4), ExactObs(damp=0.0)):
        update = run(part, layer)
        assert not (update.keep & ~allowed).any() and int(update.keep.sum()) == int(layer.keep.sum())


def test_a_mask_that_is_not_free_stands() -> None:
    x = inputs(100, 12)
    layer = replace(layer_of(x, 6), free=False)
    for part in (ObsUpdate(block=4), ExactObs()):
        assert torch.equal(run(part, layer).keep, layer.keep)
    whole = replace(units_layer(x, 4, 3, [1, 3]), free=False)
    for part in (GroupObs(), Osscar()):
        assert torch.equal(run(part, whole).keep, whole.keep)


# Greedy, row by row


def literal_obc(layer: Layer, x: Tensor, removed: int) -> Tensor:
    """Refit after every removal: each row drops the weight whose removal, all others refitted, costs least."""
    out, width = layer.w.shape
    traces, orders = [], []
    for row in range(out):
        target, left, losses, order, before = x @ layer.w[row], list(range(width)), [], [], 0.0
        while left:
            costs = []
            for j in left:
                s = [c for c in left if c != j]
                fit = torch.linalg.lstsq(x[:, s], target.unsqueeze(1)).solution.squeeze(1) if s else torch.zeros(0)
                costs.append((float((x[:, s] @ fit.double() - target).square().sum() / len(x)), j))
            cost, j = min(costs)
            left.remove(j)
            order.append(j)
            losses.append(cost - before)
            before = cost
        traces.append(losses)
        orders.append(order)
    ranked = sorted((loss, row) for row, losses in enumerate(traces) for loss in losses)[:removed]
    keep = torch.ones(out, width, dtype=torch.bool)
    for row in range(out):
        for j in orders[row][: sum(r == row for _, r in ranked)]:
            keep[row, j] = False
    return keep


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exact_obs_is_literal_greedy_with_refits(seed: int) -> None:
    x = inputs(50, 7, seed)
    layer = layer_of(x, 4, seed=seed)
    update = run(ExactObs(damp=0.0), layer)
    keep = literal_obc(layer, x, int((~layer.keep).sum()))
    assert torch.equal(update.keep, keep)
    assert torch.allclose(update.w, fitted(layer, keep, x), atol=1e-8)


def test_exact_obs_keeps_rows_equal_where_the_masks_do() -> None:
    x = inputs(50, 8)
    keep = torch.arange(8).expand(5, -1) < 3
    update = run(ExactObs(), layer_of(x, 5, keep.clone()))
    assert (update.keep.sum(1) == 3).all()


def test_exact_obs_comes_close_to_the_best_support() -> None:
    x = inputs(50, 7, seed=4)
    keep = torch.arange(7).expand(3, -1) < 3
    layer = layer_of(x, 3, keep.clone())
    update = run(ExactObs(damp=0.0), layer)
    for row in range(3):
        one = replace(layer, w=layer.w[row : row + 1], bias=None, keep=keep[row : row + 1])
        errors = []
        for s in itertools.combinations(range(7), 3):
            mask = torch.zeros(1, 7, dtype=torch.bool)
            mask[0, list(s)] = True
            errors.append(lost(one, fitted(one, mask, x), x))
        greedy = lost(one, update.w[row : row + 1], x)
        assert min(errors) - 1e-9 <= greedy <= sorted(errors)[len(errors) // 4]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LeastSquares(damp=-1.0),
        lambda: ObsUpdate(block=0),
        lambda: ExactObs(damp=-0.1),
        lambda: Osscar(swaps=0),
        lambda: MaskRescale(most=0.0),
        lambda: Merge(threshold=2.0),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(SpecError):
        wrong()  # type: ignore[operator]
