"""Selection beyond the next layer: random widths and their quick evaluation, linear probes, discrimination."""

from __future__ import annotations

import copy
import importlib
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.groups import Group, Member
from prunus.parts.allocation import RandomWidths
from prunus.parts.criteria import DiscriminativeSelection, ProbeGain


@pytest.fixture
def task() -> prunus.Task:
    draw = torch.Generator().manual_seed(7)
    batches = [
        (torch.randn(n, 2, 6, 6, generator=draw, dtype=torch.float64), torch.randint(3, (n,), generator=draw))
        for n in (5, 3)
    ]
    return prunus.Task(loss=lambda model, b: F.cross_entropy(model(b[0]), b[1]), calib=batches)


def mean_loss(net: nn.Module, task: prunus.Task) -> float:
    with torch.no_grad():
        return sum(float(F.cross_entropy(net(x), y)) for x, y in task.calib) / len(task.calib)


# Random widths and their quick evaluation


def test_random_widths_are_drawn_by_number_and_scaled_to_the_density() -> None:
    space = {f"l{i}": Group(f"l{i}", (n,), (Member(f"l{i}.weight", 0),), at_least=1) for i, n in enumerate((9, 20, 40))}
    worth = {n: torch.rand(g.units, generator=torch.Generator().manual_seed(1)) for n, g in space.items()}
    widths = set()
    for draw in range(5):
        allocate = RandomWidths(draw=draw, low=0.2)
        masks = allocate(worth, 0.5, space)
        assert all(torch.equal(m, allocate(worth, 0.5, space)[n]) for n, m in masks.items())
        assert sum(int(m.sum()) for m in masks.values()) == 35
        assert all(m.any() and worth[n][m].min() > worth[n][~m].max() for n, m in masks.items() if not m.all())
        widths.add(tuple(int(m.sum()) for m in masks.values()))
        shares = 0.2 + 0.8 * torch.rand(3, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
        exact = shares * torch.tensor([9, 20, 40])
        if float((exact * 35 / exact.sum()).max()) < 9:  # nothing is cut off
            assert (torch.tensor(list(widths)[-1]) - exact * 35 / exact.sum()).abs().max() < 1.01
    assert len(widths) > 2
    assert all(m.all() for m in RandomWidths()(worth, 1.0, space).values())
    with pytest.raises(SpecError, match="low"):
        RandomWidths(low=0.0)


@pytest.mark.parametrize("name", ["eagle_eye", "random_channel_pruning"])
def test_the_best_of_the_candidates_is_carried_out(name: str, task: prunus.Task) -> None:
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double()
    before = copy.deepcopy(net.state_dict())
    result = prunus.prune(net, task, name, budget=prunus.Budget(macs=0.5), candidates=3, seed=1)
    noted = result.history[-1]["candidates"]
    base = importlib.import_module(f"prunus.methods.{name}").CANDIDATE
    by_hand = []
    for draw in range(3, 6):
        recipe = replace(base, allocate=replace(base.allocate, draw=draw))
        pruned = prunus.prune(net, task, recipe, budget=prunus.Budget(macs=0.5), seed=1)
        assert pruned.model.training == net.training
        by_hand.append(mean_loss(pruned.model.eval(), task))
    assert noted == pytest.approx(by_hand, rel=1e-12) and len(set(noted)) > 1
    assert result.recipe.allocate.draw == 3 + min(range(3), key=lambda i: noted[i])
    again = prunus.prune(net, task, result.recipe, budget=prunus.Budget(macs=0.5), seed=1)
    assert all(torch.equal(m, again.masks[n]) for n, m in result.masks.items())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    with pytest.raises(SpecError, match="at least one"):
        prunus.prune(net, task, name, sparsity=0.5, candidates=0)


# Linear probes


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(Residual(), Residual(), Residual()), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def accuracy_without_each(x: Tensor, y: Tensor, ridge: float) -> float:
    """Ridge regression fitted n times, each time without the sample that is judged; the intercept is free."""
    right = 0
    weight = ridge * float((x - x.mean(0)).square().sum(0).mean())
    for i in range(len(x)):
        rest = torch.arange(len(x)) != i
        a = torch.cat([x - x.mean(0), torch.ones(len(x), 1, dtype=x.dtype)], 1)
        damp = torch.diag(torch.tensor([weight] * x.shape[1] + [0.0], dtype=x.dtype))
        w = torch.linalg.solve(a[rest].T @ a[rest] + damp, a[rest].T @ F.one_hot(y).to(x.dtype)[rest])
        right += int((a[i] @ w).argmax() == y[i])
    return right / len(x)


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_probes_judge_each_sample_by_the_classifier_of_the_others(ridge: float) -> None:
    torch.manual_seed(2)
    net = Deep().double()
    y = torch.arange(30) % 3
    x = torch.randn(30, 5, dtype=torch.float64) + F.one_hot(y, 5)
    task = prunus.Task(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), calib=[(x[:16], y[:16]), (x[16:], y[16:])])
    recipe = replace(methods.layer_probes, criterion=ProbeGain(ridge=ridge))
    (found,) = prunus.score(net, task, recipe).values()
    states = [x]
    for block in net.blocks:
        states.append(block(states[-1]).detach())
    right = [accuracy_without_each(s, y, ridge) for s in states]
    assert found.tolist() == pytest.approx([b - a for a, b in itertools.pairwise(right)])


def test_probes_need_classes() -> None:
    net = Deep().double()
    x = torch.randn(6, 5, dtype=torch.float64)
    for labels in (torch.randn(6), torch.zeros(6, 2, dtype=torch.long)):
        task = prunus.Task(loss=lambda m, b: m(b[0]).sum(), calib=[(x, labels)])
        with pytest.raises(SpecError, match="one class per sample"):
            prunus.score(net, task, methods.layer_probes)
    with pytest.raises(SpecError, match="above 0"):
        ProbeGain(ridge=0.0)


# Discrimination-aware selection


@pytest.mark.parametrize(("refit", "weight"), [(0, 1.0), (2, 3.0), (1, 0.0)])
def test_discriminative_selection(task: prunus.Task, refit: int, weight: float) -> None:
    """Algorithm 2 with automatic differentiation of both losses, on a network with one group."""
    units, rate = 5, 0.05
    torch.manual_seed(4)
    first, second = nn.Conv2d(2, units, 3, padding=1), nn.Conv2d(units, 4, 3, stride=2, padding=1)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()
    before = copy.deepcopy(net.state_dict())
    dense, bias = second.weight.detach().clone(), second.bias.detach()
    inputs = [net[1](net[0](x)).detach() for x, _ in task.calib]

    def gradient(w: Tensor) -> Tensor:
        w = w.clone().requires_grad_()
        outs = [F.conv2d(h, w, bias, 2, 1) for h in inputs]
        aims = [F.conv2d(h, dense, bias, 2, 1) for h in inputs]
        error = torch.cat([o - a for o, a in zip(outs, aims, strict=True)]).square().mean()
        loss = sum(F.cross_entropy(net[5](o.relu().flatten(1)), y) for o, (_, y) in zip(outs, task.calib, strict=True))
        return torch.autograd.grad(error + weight * loss / 2, w)[0]

    w, added = torch.zeros_like(dense), []
    while len(added) < units:
        norms = gradient(w).square().sum((0, 2, 3)).sqrt()
        best = max((u for u in range(units) if u not in added), key=lambda u: float(norms[u]))
        added.append(best)
        w[:, best] = dense[:, best]
        for _ in range(refit):
            step = gradient(w)
            w[:, added] -= rate * step[:, added]
    recipe = replace(methods.dcp, criterion=DiscriminativeSelection(weight=weight, refit=refit, rate=rate))
    place = prunus.score(net, task, recipe)["0"]
    assert place.argsort(descending=True).tolist() == added
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    with pytest.raises(SpecError, match="not negative"):
        DiscriminativeSelection(refit=-1)
