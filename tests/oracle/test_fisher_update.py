"""What WoodFisher and oBERT do to the weights that stay, written down slowly: one unit that goes after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core.errors import SpecError
from prunus.core.recipe import Recipe
from prunus.parts.granularity import Channel, Element, Tile
from prunus.parts.reconstruct import FisherUpdate
from prunus.parts.schedule import Iterative, OneShot
from tests.oracle.second_order_nets import batches, build, sample_gradients, task_of, weights

DAMP = 1e-2
PAIRS = Tile((1, 2), exclude=("2.*",))  # rows of five weights hold no pairs


def recipe(method: str, block: int, **changes: Any) -> Recipe:
    """One event, by an exact enough Fisher matrix."""
    found = prunus.methods.get(method)
    criterion = replace(found.criterion, block=block, damp=DAMP)
    changes = {"schedule": OneShot(), "granularity": Element()} | changes
    return replace(found, criterion=criterion, reconstruct=FisherUpdate(block=block, damp=DAMP), **changes)


def by_hand(
    model: nn.Module, data: Any, block: int, there: dict[str, Tensor], stays: dict[str, Tensor], size: int
) -> dict[str, Tensor]:
    """Weights after each unit of `size` weights that goes has been taken out as if it were the only one: what the other
    weights of its block then do is the answer of a quadratic loss, by its gradient set to zero.
    """
    every, found = sample_gradients(model, data), {}
    for name, w in weights(model).items():
        if name not in stays:
            found[name] = w
            continue
        before, after = there[name].flatten(), stays[name].flatten()
        rows = torch.stack([g[name].flatten() for g in every]) * before
        w, new = w.flatten(), w.flatten().clone()
        for start in range(0, len(w), block):
            mine = list(range(start, min(start + block, len(w))))
            fisher = rows[:, mine].T @ rows[:, mine] / len(rows) + DAMP * torch.eye(len(mine), dtype=torch.float64)
            for first in range(0, len(mine), size):
                unit = list(range(first, first + size))
                if not (before[mine[first]] and not after[mine[first]]):
                    continue
                rest = [i for i in range(len(mine)) if i not in unit]
                gone = w[[mine[i] for i in unit]]
                # d/dv of 1/2 v^T F v is zero in the others, where v = -w in the unit.
                reply = torch.linalg.solve(fisher[rest][:, rest], fisher[rest][:, unit] @ gone)
                for i, v in zip(rest, reply.tolist(), strict=True):
                    new[mine[i]] += v
        found[name] = (new * after).reshape(stays[name].shape)
    return found


def whole(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: torch.ones_like(m) for n, m in masks.items()}


def check(result: prunus.Result, expected: dict[str, Tensor]) -> None:
    for name, w in weights(result.model).items():
        torch.testing.assert_close(w, expected[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("name", "block"), [("mlp", 7), ("mlp", 10_000), ("conv", 9)])
def test_woodfisher(name: str, block: int) -> None:
    model, data = build(name), batches(name)
    found = prunus.prune(model, task_of(data), recipe("woodfisher", block), sparsity=0.4)
    plain = prunus.prune(model, task_of(data), replace(recipe("woodfisher", block), reconstruct=None), sparsity=0.4)
    assert all(torch.equal(m, plain.masks[n]) for n, m in found.masks.items())
    expected = by_hand(model, data, block, whole(found.masks), found.masks, 1)
    check(found, expected)
    assert any(not torch.allclose(w, weights(plain.model)[n]) for n, w in weights(found.model).items())


def test_obert_moves_what_stays_for_pairs_that_go() -> None:
    model, data = build("mlp"), batches("mlp")
    found = prunus.prune(model, task_of(data), recipe("obert", 10, granularity=PAIRS), sparsity=0.5)
    assert 0 < int(found.masks["0.weight"].sum()) < 20
    check(found, by_hand(model, data, 10, whole(found.masks), found.masks, 2))


def test_what_went_before_neither_moves_nor_is_counted() -> None:
    """A second event: gradients of weights that are gone already do not enter."""
    model, data = build("mlp"), batches("mlp")
    twice = recipe("woodfisher", 20, schedule=Iterative(rounds=2))
    events = twice.timeline(0.4)
    assert len(events) == 2
    once = prunus.prune(model, task_of(data), recipe("woodfisher", 20), sparsity=1 - events[0].density)
    both = prunus.prune(model, task_of(data), twice, sparsity=0.6)
    check(both, by_hand(once.model, data, 20, once.masks, both.masks, 1))


def test_the_loss_rises_less() -> None:
    """Of one weight that goes, by the quadratic model of the loss that its Fisher matrix makes."""
    model, data = build("mlp"), batches("mlp")
    one = recipe("woodfisher", 10_000)
    every = sum(w.numel() for w in weights(model).values())
    moved, stayed = (
        prunus.prune(model, task_of(data), r, budget=prunus.Budget(1 - 1 / every))
        for r in (one, replace(one, reconstruct=None))
    )
    ((name, mask),) = [(n, m) for n, m in moved.masks.items() if not bool(m.all())]
    assert int((~mask).sum()) == 1
    rows = torch.stack([g[name].flatten() for g in sample_gradients(model, data)])
    fisher = rows.T @ rows / len(rows) + DAMP * torch.eye(rows.shape[1], dtype=torch.float64)
    steps = [(weights(r.model)[name] - weights(model)[name]).flatten() for r in (moved, stayed)]
    rise, without = (float(0.5 * d @ fisher @ d) for d in steps)
    q = int((~mask).flatten().nonzero())
    assert rise < without
    assert rise == pytest.approx(float(weights(model)[name].flatten()[q] ** 2 / (2 * torch.linalg.inv(fisher)[q, q])))


def test_units_in_several_blocks() -> None:
    """Filters, of which each lies in several blocks: block by block, what goes of it goes there as one unit."""
    model, data = build("conv"), batches("conv")
    found = prunus.prune(model, task_of(data), recipe("woodfisher", 7, granularity=Channel()), sparsity=0.5)
    every = sample_gradients(model, data)
    for name in ("first.weight", "second.weight"):
        w, keep = weights(model)[name], found.masks[name].flatten(1).any(1)
        assert 0 < int(keep.sum()) < len(keep)
        rows, new = torch.stack([g[name].flatten() for g in every]), w.flatten().clone()
        owner = torch.arange(len(w)).repeat_interleave(w[0].numel())
        for start in range(0, w.numel(), 7):
            mine = torch.arange(start, min(start + 7, w.numel()))
            inverse = torch.linalg.inv(
                rows[:, mine].T @ rows[:, mine] / len(rows) + DAMP * torch.eye(len(mine)).double()
            )
            for unit in (~keep).nonzero().flatten().tolist():
                q = (owner[mine] == unit).nonzero().flatten()
                if len(q):
                    new[mine] -= inverse[:, q] @ torch.linalg.solve(inverse[q][:, q], w.flatten()[mine[q]])
        expected = new.reshape(w.shape) * found.masks[name]
        torch.testing.assert_close(weights(found.model)[name], expected, rtol=1e-8, atol=1e-12)


def test_what_cannot_be() -> None:
    with pytest.raises(SpecError, match="damping above 0"):
        FisherUpdate(damp=0.0)
    with pytest.raises(SpecError, match="FisherUpdate needs the loss"):
        replace(prunus.methods.get("wanda"), reconstruct=FisherUpdate())
