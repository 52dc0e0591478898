"""ALPS and exact OBS with patterns, against slow versions: plain solves, sorted lists, one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.layer import Layer
from prunus.parts.allocation import NofM, Uniform
from prunus.parts.granularity import Tile
from prunus.parts.reconstruct import Alternating, ExactObs, LeastSquares
from tests.oracle.linear import fitted, inputs, layer_of, lost, run

Pick = Callable[[Tensor], Tensor]


def largest(scores: list[float], k: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:k])


def picked(layer: Layer, how: str) -> Pick:
    """The support that a matrix of numbers asks for: of the layer, of each row, of each run of four."""

    def choose(b: Tensor) -> Tensor:
        size, keep = b.abs(), torch.zeros_like(b, dtype=torch.bool)
        rows, width = b.shape
        if how == "layer":
            for place in largest(size.flatten().tolist(), int(layer.keep.sum())):
                keep[place // width, place % width] = True
            return keep
        step = width if how == "row" else 4
        for row in range(rows):
            for start in range(0, width, step):
                k = int(layer.keep[row, start : start + step].sum())
                for j in largest(size[row, start : start + step].tolist(), k):
                    keep[row, start + j] = True
        return keep

    return choose


def literal_alps(layer: Layer, pick: Pick, rounds: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1 with the update scheme of its appendix, then textbook conjugate gradients for one row at a time."""
    width = layer.w.shape[1]
    h = layer.gram + 0.01 * layer.gram.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    size = h.diagonal().sqrt()
    h = h / size / size.unsqueeze(1)
    dense = layer.w * size
    goal, rho, grew = dense @ h, 0.1, False
    support = pick(dense)
    d, v = dense * support, torch.zeros_like(dense)
    old, kept = support, int(support.sum())
    for t in range(1, rounds + 1):
        b = torch.linalg.solve(h + rho * torch.eye(width, dtype=torch.float64), (goal - v + rho * d).T).T
        support = pick(b + v / rho)
        d = (b + v / rho) * support
        v = v + rho * (b - d)
        if t % 3 == 0:
            changed = int((support ^ old).sum())
            old = support
            if changed > 0.1 * kept:
                rho, grew = 1.3 * rho, True
            elif changed > 0.005 * kept:
                rho, grew = 1.2 * rho, True
            elif grew and changed == 0:
                break
            elif grew:
                rho = 1.1 * rho
            else:
                rho = rho / 5
                if changed:
                    support = pick(dense)
                    d, v = dense * support, torch.zeros_like(dense)
            if t >= 30 and changed < 0.0003 * kept:
                break
    w = torch.zeros_like(dense)
    for row in range(len(dense)):
        s = support[row].nonzero().squeeze(1)
        a, x = h[s][:, s], d[row, s]
        r = goal[row, s] - a @ x
        p = r.clone()
        for _ in range(10):
            if float(r.norm()) <= 1e-12 * float(goal[row].norm()):
                break
            alpha = r @ r / (p @ a @ p)
            x, after = x + alpha * p, r - alpha * (a @ p)
            p, r = after + (after @ after) / (r @ r) * p, after
        w[row, s] = x
    return w / size, support


def layer_for(how: str, seed: int, out: int = 6, width: int = 12) -> tuple[Layer, Tensor]:
    x = inputs(80, width, seed)
    if how == "layer":
        return layer_of(x, out, seed=seed), x
    keep = (torch.arange(width) % 4 < 2 if how == "blocks" else torch.arange(width) < 5).expand(out, -1).clone()
    layer = layer_of(x, out, keep, seed=seed)
    return (replace(layer, block=torch.arange(width) // 4) if how == "blocks" else layer), x


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("how", ["layer", "row", "blocks"])
def test_alps_is_its_algorithm(how: str, seed: int) -> None:
    layer, _ = layer_for(how, seed)
    update = run(Alternating(rounds=90), layer)
    w, keep = literal_alps(layer, picked(layer, how), 90)
    assert torch.equal(update.keep, keep) and torch.allclose(update.w, w, atol=1e-8)
    assert int(keep.sum()) == int(layer.keep.sum()) and (update.w[~keep] == 0).all()


def test_alps_comes_closer_to_the_best_support_than_what_it_starts_from() -> None:
    ours = start = least = 0.0
    for seed in range(8):
        layer, x = layer_for("row", seed, out=1, width=9)
        update = run(Alternating(damp=1e-6, steps=30), layer)
        ours += lost(layer, fitted(layer, update.keep, x), x)
        assert torch.allclose(update.w, fitted(layer, update.keep, x), atol=1e-3)
        start += lost(layer, fitted(layer, picked(layer, "row")(layer.w * layer.gram.diagonal().sqrt()), x), x)
        errors = []
        for s in combinations(range(9), 5):
            keep = torch.zeros(1, 9, dtype=torch.bool)
            keep[0, list(s)] = True
            errors.append(lost(layer, fitted(layer, keep, x), x))
        least += min(errors)
    assert least <= ours < start and ours < 2 * least + 0.5 * (start - least)


def literal_obs(layer: Layer, x: Tensor) -> Tensor:
    """In every row, of the runs of four with room the weight goes whose leaving costs least when all are refitted."""
    keep = torch.ones_like(layer.keep)
    for row in range(len(keep)):
        left = {j: set(range(4 * j, 4 * j + 4)) for j in range(keep.shape[1] // 4)}
        target = x @ layer.w[row]
        while any(len(s) > int(layer.keep[row, 4 * b : 4 * b + 4].sum()) for b, s in left.items()):
            costs = []
            for b, run_ in left.items():
                if len(run_) == int(layer.keep[row, 4 * b : 4 * b + 4].sum()):
                    continue
                for j in run_:
                    s = sorted(set().union(*left.values()) - {j})
                    fit = torch.linalg.lstsq(x[:, s], target.unsqueeze(1)).solution.squeeze(1)
                    costs.append((float((x[:, s] @ fit - target).square().sum()), b, j))
            _, b, j = min(costs)
            left[b].remove(j)
            keep[row, j] = False
    return keep


@pytest.mark.parametrize("seed", [1, 2])
def test_exact_obs_in_patterns_is_greedy_with_refits(seed: int) -> None:
    layer, x = layer_for("blocks", seed, out=3)
    update = run(ExactObs(damp=0.0), layer)
    assert torch.equal(update.keep, literal_obs(layer, x))
    assert torch.allclose(update.w, fitted(layer, update.keep, x), atol=1e-8)


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, prunus.Task]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    tokens = [{"input_ids": torch.randint(50, (2, 20))} for _ in range(2)]
    return transformers.LlamaForCausalLM(config).eval().double(), prunus.Task(calib=tokens)


@pytest.mark.parametrize("name", ["alps", "obc"])
@pytest.mark.parametrize("pattern", [None, (2, 4), (1, 8)], ids=str)
def test_a_llama_has_what_was_asked(
    llama: tuple[nn.Module, prunus.Task], name: str, pattern: tuple[int, int] | None
) -> None:
    model, task = llama
    recipe = replace(methods.get(name), allocate=Uniform() if pattern is None else NofM(*pattern), sweep="blocks")
    found = prunus.prune(model, task, recipe, sparsity=0.7 if pattern is None else None)
    before = dict(model.named_parameters())
    assert len(found.unit_masks) == 14
    for param, mask in found.unit_masks.items():
        if pattern is None:
            assert int(mask.sum()) == mask.numel() - int(0.7 * mask.numel() + 1e-9)
        else:
            assert (mask.reshape(-1, pattern[1]).sum(1) == pattern[0]).all()
        w = found.model.get_parameter(param).detach()
        assert (w[~mask] == 0).all() and not torch.allclose(w[mask], before[param][mask])


def literal_boxes(layer: Layer, x: Tensor, size: int, removed: int) -> Tensor:
    """In every row the box leaves, again and again, whose leaving costs least when all that stays is refitted; then
    rows are cut where the smallest losses of the layer end.
    """
    keep = torch.ones_like(layer.keep)
    traces, orders = [], []
    for row in range(len(keep)):
        left, target, before = list(range(keep.shape[1] // size)), x @ layer.w[row], 0.0
        losses, order = [], []
        while left:
            costs = []
            for b in left:
                s = [b_ * size + i for b_ in left if b_ != b for i in range(size)]
                off = target
                if s:
                    off = x[:, s] @ torch.linalg.lstsq(x[:, s], target.unsqueeze(1)).solution.squeeze(1) - target
                costs.append((float(off.square().sum() / len(x)), b))
            cost, b = min(costs)
            left.remove(b)
            losses.append(cost - before)
            order.append(b)
            before = cost
        traces.append(losses)
        orders.append(order)
    gone = sorted((loss, row) for row, losses in enumerate(traces) for loss in losses)[:removed]
    for row, order in enumerate(orders):
        for b in order[: sum(r == row for _, r in gone)]:
            keep[row, b * size : (b + 1) * size] = False
    return keep


@pytest.mark.parametrize("seed", [1, 2])
def test_exact_obs_in_boxes_is_greedy_with_refits(seed: int) -> None:
    x = inputs(60, 12, seed)
    some = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)) > 0.5
    layer = replace(layer_of(x, 4, some.repeat_interleave(3, 1), seed=seed), box=torch.arange(12) // 3, free=False)
    update = run(ExactObs(damp=0.0), layer)
    assert torch.equal(update.keep, literal_boxes(layer, x, 3, int((~some).sum())))
    assert torch.allclose(update.w, fitted(layer, update.keep, x), atol=1e-8)
    even = replace(layer, keep=(torch.arange(12) // 3 < 2).expand(4, -1).clone())
    assert (run(ExactObs(), even).keep.sum(1) == 6).all()


def test_boxes_of_a_network_leave_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8)).double()
    x = torch.randn(60, 2, 4, 4).double()
    task = prunus.Task(calib=[x])
    for box in ((1, 4, 1, 1), (1, 2, 0, 0)):
        recipe = replace(methods.obc, granularity=Tile(box=box), allocate=Uniform())
        found = prunus.prune(model, task, recipe, sparsity=0.5)
        assert len(found.unit_masks) == 2 - (box[1] == 4)
        for name, mask in found.unit_masks.items():
            assert int(mask.sum()) == mask.numel() - mask.numel() // 2
            w = found.model.get_parameter(name).detach()
            kept = found.masks[name]
            assert (w[~kept] == 0).all() and int(kept.sum()) == w.numel() * int(mask.sum()) // mask.numel()
        fixed = prunus.prune(model, task, replace(recipe, reconstruct=LeastSquares()), sparsity=0.5)
        errors = [float((m.model(x) - model(x)).square().sum()) for m in (found, fixed)]
        assert errors[0] < errors[1]
