"""Selection by what the next layers lose: every formula against runs with channels zeroed by hand, on tiny networks."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.allocation import SparseRecovery, SubspaceClusters
from prunus.parts.allocation.representatives import sparse_codes, spectral_clusters
from prunus.parts.criteria import (
    BinaryFilterSearch,
    ForwardSelection,
    GreedyReconstruction,
    LassoPath,
    LossRise,
)
from prunus.parts.criteria.reconstruction import half_mask_damage

UNITS = 6


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(3)
    first, second = nn.Conv2d(2, UNITS, 3, padding=1), nn.Conv2d(UNITS, 4, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()


@pytest.fixture
def task() -> prunus.Task:
    draw = torch.Generator().manual_seed(7)
    batches = [
        (torch.randn(n, 2, 6, 6, generator=draw, dtype=torch.float64), torch.randint(3, (n,), generator=draw))
        for n in (5, 3)
    ]
    return prunus.Task(loss=lambda model, b: F.cross_entropy(model(b[0]), b[1]), calib=batches)


def hidden(net: nn.Module, task: prunus.Task) -> Tensor:
    """What the second convolution reads, over all batches."""
    return torch.cat([net[1](net[0](x)) for x, _ in task.calib]).detach()


def given(net: nn.Module, h: Tensor, unit: int) -> Tensor:
    """What one channel adds to the second convolution's output, as a vector."""
    alone = torch.zeros_like(h)
    alone[:, unit] = h[:, unit]
    out = F.conv2d(alone, net[2].weight, None, 2, 1).detach()
    return out.transpose(0, 1).reshape(-1)


def contributions(net: nn.Module, task: prunus.Task) -> Tensor:
    h = hidden(net, task)
    places = h.shape[0] * 9
    return torch.stack([given(net, h, u) for u in range(UNITS)], 1) / places**0.5


def scores(net: nn.Module, task: prunus.Task, criterion: object, name: str = "thinet") -> dict[str, Tensor]:
    return prunus.score(net, task, replace(methods.get(name), criterion=criterion, reconstruct=None))


def kept_sets(order: Tensor) -> list[set[int]]:
    """The units that stay, for every number of them."""
    best = order.argsort(descending=True).tolist()
    return [set(best[:k]) for k in range(1, len(best))]


# ThiNet


def test_thinet_removes_greedily_what_the_next_outputs_lose_least(net: nn.Module, task: prunus.Task) -> None:
    z = contributions(net, task)
    gone: list[int] = []
    expected = torch.zeros(UNITS)
    for step in range(UNITS):
        errors = {u: float(z[:, [*gone, u]].sum(1).square().sum()) for u in range(UNITS) if u not in gone}
        first = min(errors, key=lambda u: errors[u])
        gone.append(first)
        expected[first] = step
    assert torch.equal(scores(net, task, GreedyReconstruction())["0"].float(), expected)


def test_the_order_of_removal_serves_every_density(net: nn.Module, task: prunus.Task) -> None:
    order = scores(net, task, GreedyReconstruction())["0"]
    for k, stay in enumerate(kept_sets(order), 1):
        result = prunus.prune(net, task, methods.thinet, sparsity=1 - k / UNITS)
        assert set(result.unit_masks["0"].nonzero().squeeze(1).tolist()) == stay


def test_of_equal_units_the_later_one_goes_first() -> None:
    assert GreedyReconstruction()(torch.eye(4, dtype=torch.float64)).tolist() == [3, 2, 1, 0]
    order = BinaryFilterSearch()(torch.eye(4, dtype=torch.float64))
    assert order.argsort(descending=True).tolist() == [0, 1, 2, 3]


def test_several_readers_count_together(task: prunus.Task) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Conv2d(2, UNITS, 3), nn.Conv2d(UNITS, 3, 1), nn.Conv2d(UNITS, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            return self.a(h).mean((2, 3)) + self.b(h).mean((2, 3))

    torch.manual_seed(5)
    net = Two().double()
    h = torch.cat([net.first(x).relu() for x, _ in task.calib]).detach()
    seen = {}
    for name, reader in (("a", net.a), ("b", net.b)):
        outs = []
        for u in range(UNITS):
            alone = torch.zeros_like(h)
            alone[:, u] = h[:, u]
            outs.append(F.conv2d(alone, reader.weight).detach())
        places = outs[0].shape[0] * outs[0].shape[2] * outs[0].shape[3]
        seen[name] = torch.stack([o.reshape(-1) for o in outs], 1) / places**0.5
    cross = seen["a"].T @ seen["a"] + seen["b"].T @ seen["b"]
    assert torch.equal(scores(net, task, GreedyReconstruction())["first"], GreedyReconstruction()(cross))
    torch.testing.assert_close(scores(net, task, LassoPath())["first"], LassoPath()(cross))


# LASSO


def lasso(c: Tensor, weight: float) -> np.ndarray:
    """min 1/2 b'Cb - b'C1 + weight |b|_1 by coordinate descent, until nothing moves."""
    gram = c.numpy()
    beta, pull = np.zeros(len(gram)), gram.sum(1)
    for _ in range(20000):
        before = beta.copy()
        for j in range(len(gram)):
            rest = pull[j] - gram[j] @ beta + gram[j, j] * beta[j]
            beta[j] = np.sign(rest) * max(abs(rest) - weight, 0.0) / gram[j, j]
        if np.abs(beta - before).max() < 1e-12:
            break
    return beta


def test_lasso_enters_units_where_coordinate_descent_does(net: nn.Module, task: prunus.Task) -> None:
    z = contributions(net, task)
    c = z.T @ z
    path = scores(net, task, LassoPath())["0"]
    for u in range(UNITS):
        assert lasso(c, float(path[u]) * 1.0001)[u] == 0 and lasso(c, float(path[u]) * 0.9999)[u] != 0


@pytest.mark.parametrize("seed", range(6))
def test_lasso_path_on_correlated_units(seed: int) -> None:
    """Supports of the lasso are what the order keeps, but for units that have left the path again."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(30, 5, generator=draw, dtype=torch.float64)
    z = z @ torch.randn(5, 5, generator=draw, dtype=torch.float64)
    c = z.T @ z / 30
    path = LassoPath()(c)
    for weight in torch.logspace(-3, 0, 12, dtype=torch.float64).tolist():
        level = weight * float(path.max())
        support = lasso(c, level) != 0
        assert not (support & (path.numpy() < level)).any()
    largest = c.sum(1).abs()
    assert float(path.max()) == pytest.approx(float(largest.max())) and int(path.argmax()) == int(largest.argmax())


def test_lasso_has_no_use_for_dead_and_double_units() -> None:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(30, 5, generator=draw, dtype=torch.float64)
    z[:, 2], z[:, 4] = 0, 2 * z[:, 0]
    path = LassoPath()(z.T @ z)
    assert path[2] == 0 and path[0] == 0 and (path[[1, 3, 4]] > 0).all()
    assert LassoPath()(torch.zeros(3, 3, dtype=torch.float64)).tolist() == [0, 0, 0]


# AOFP


def test_half_mask_damage_is_the_mean_over_all_masks(net: nn.Module, task: prunus.Task) -> None:
    z = contributions(net, task)
    for half in range(1, UNITS + 1):
        sums, counts = torch.zeros(UNITS, dtype=torch.float64), torch.zeros(UNITS)
        for masked in itertools.combinations(range(UNITS), half):
            damage = z[:, list(masked)].sum(1).square().sum()
            sums[list(masked)] += damage
            counts[list(masked)] += 1
        torch.testing.assert_close(half_mask_damage(z.T @ z, half), sums / counts)


def searched(c: Tensor, threshold: float) -> list[int]:
    """Binary filter search with the damage from all masks enumerated: the order in which units go."""
    alive, order = list(range(len(c))), []
    while alive:
        energy, space = c[alive][:, alive].sum(), list(alive)
        while True:
            half = max(1, len(space) // 2)
            masks = [list(m) for m in itertools.combinations(space, half)]
            damage = {u: [float(c[m][:, m].sum() / energy) for m in masks if u in m] for u in space}
            ranked = sorted(space, key=lambda u: sum(damage[u]) / len(damage[u]))
            worst = sum(damage[ranked[half - 1]]) / len(damage[ranked[half - 1]])
            if half == 1 or worst < threshold:
                break
            space = ranked[:half]
        order += ranked[:half]
        alive = [u for u in alive if u not in ranked[:half]]
    return order


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 10.0])
def test_binary_filter_search(net: nn.Module, task: prunus.Task, threshold: float) -> None:
    z = contributions(net, task)
    score = scores(net, task, BinaryFilterSearch(threshold=threshold))["0"]
    assert score.argsort().tolist() == searched(z.T @ z, threshold)
    with pytest.raises(SpecError, match="share"):
        BinaryFilterSearch(threshold=-1.0)


# Loss without a unit, loss with a few


def mean_loss(net: nn.Module, task: prunus.Task) -> float:
    with torch.no_grad():
        return sum(float(F.cross_entropy(net(x), y)) for x, y in task.calib) / len(task.calib)


def test_leave_one_out_is_the_loss_of_the_network_without_the_channel(net: nn.Module, task: prunus.Task) -> None:
    expected = []
    for u in range(UNITS):
        without = copy.deepcopy(net)
        with torch.no_grad():
            without[2].weight[:, u] = 0
        expected.append(mean_loss(without, task) - mean_loss(net, task))
    found = scores(net, task, LossRise())["0"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("average", [True, False])
def test_forward_selection_adds_what_lowers_the_loss_most(net: nn.Module, task: prunus.Task, average: bool) -> None:
    chosen: list[int] = []
    expected = torch.zeros(UNITS)
    while len(chosen) < UNITS:
        loss = {}
        for u in set(range(UNITS)) - set(chosen):
            few = copy.deepcopy(net)
            with torch.no_grad():
                others = [v for v in range(UNITS) if v not in (*chosen, u)]
                few[2].weight[:, others] = 0
                few[2].weight.mul_(UNITS / (len(chosen) + 1) if average else 1.0)
            loss[u] = mean_loss(few, task)
        best = min(loss, key=lambda u: loss[u])
        expected[best] = UNITS - len(chosen)
        chosen.append(best)
    before = copy.deepcopy(net.state_dict())
    assert torch.equal(scores(net, task, ForwardSelection(average=average))["0"].float(), expected)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


def test_fewer_candidates_are_drawn_from_the_sessions_generator(net: nn.Module, task: prunus.Task) -> None:
    recipe = replace(methods.gfs, criterion=ForwardSelection(candidates=2))
    found = [prunus.score(net, task, recipe, seed=s)["0"] for s in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and sorted(found[2].tolist()) == list(range(1, UNITS + 1))
    with pytest.raises(SpecError, match="at least one"):
        ForwardSelection(candidates=0)


# i-SpaSP


def recovered(net: nn.Module, h: Tensor, k: int, rounds: int) -> set[int]:
    """Algorithm 1 by automatic differentiation, as the paper suggests."""
    size = h.sum((0, 2, 3))
    stay: set[int] = set()
    for _ in range(rounds):
        x = h.clone().requires_grad_()
        few = torch.zeros_like(h)
        few[:, sorted(stay)] = h[:, sorted(stay)]
        residual = F.conv2d(x, net[2].weight, None, 2, 1) - F.conv2d(few, net[2].weight, None, 2, 1)
        (g,) = torch.autograd.grad(0.5 * residual.square().sum(), x)
        merged = stay | set(g.sum((0, 2, 3)).argsort(descending=True)[: 2 * k].tolist())
        stay = set(sorted(merged, key=lambda u: -float(size[u]))[:k])
    return stay


@pytest.mark.parametrize("k", range(1, UNITS))
@pytest.mark.parametrize("rounds", [1, 3])
def test_sparse_recovery(net: nn.Module, task: prunus.Task, k: int, rounds: int) -> None:
    recipe = replace(methods.i_spasp, allocate=SparseRecovery(rounds=rounds))
    task = replace(task, calib=[tuple(torch.cat(parts) for parts in zip(*task.calib, strict=True))])
    mask = prunus.prune(net, task, recipe, sparsity=1 - k / UNITS).unit_masks["0"]
    assert set(mask.nonzero().squeeze(1).tolist()) == recovered(net, hidden(net, task), k, rounds)
    with pytest.raises(SpecError, match="one round"):
        SparseRecovery(rounds=0)


# Subspace clustering


def test_sparse_codes_are_the_optimum() -> None:
    """Each column's lasso over the other columns, by coordinate descent on that column alone."""
    draw = torch.Generator().manual_seed(2)
    x = F.normalize(torch.randn(12, 5, generator=draw, dtype=torch.float64), dim=0)
    gram = x.T @ x
    codes = sparse_codes(gram, 20.0, 5000)
    least = min(float(gram[j].abs().masked_fill(torch.arange(5) == j, 0).max()) for j in range(5))
    for j in range(5):
        others = [i for i in range(5) if i != j]
        beta = torch.zeros(4, dtype=torch.float64)
        for _ in range(120):
            for a, i in enumerate(others):
                rest = float(gram[i, j] - gram[i][others] @ beta + beta[a])
                beta[a] = max(abs(rest) - least / 20.0, 0.0) * (1 if rest > 0 else -1)
        torch.testing.assert_close(codes[others, j], beta, rtol=1e-6, atol=1e-8)
        assert codes[j, j] == 0


def test_one_unit_of_every_subspace_is_kept() -> None:
    """Maps in two orthogonal planes and a line: three clusters, of each the unit with the highest score."""
    draw = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(20, 5, generator=draw, dtype=torch.float64))[0]
    planes = [basis[:, :2], basis[:, :2], basis[:, :2], basis[:, 2:4], basis[:, 2:4], basis[:, 2:4]]
    x = torch.stack([p @ torch.randn(2, generator=draw, dtype=torch.float64) for p in planes], 1)
    x = torch.cat([x, basis[:, 4:], 3 * basis[:, 4:]], 1)
    worth = torch.tensor([1.0, 5, 2, 3, 1, 2, 1, 4], dtype=torch.float64)
    assert sorted(SubspaceClusters().choose(x.T @ x, worth, 3).tolist()) == [1, 3, 7]
    affinity = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).double()
    cluster = spectral_clusters(affinity, torch.arange(5.0).double(), 2)
    assert len(cluster[:3].unique()) == len(cluster[3:].unique()) == 1 and cluster[0] != cluster[4]
    with pytest.raises(SpecError, match="alpha > 1"):
        SubspaceClusters(alpha=0.5)


def test_clusters_keep_as_many_as_the_allocation_inside_says(net: nn.Module, task: prunus.Task) -> None:
    for k in range(1, UNITS):
        result = prunus.prune(net, task, methods.subspace_clustering, sparsity=1 - k / UNITS)
        assert int(result.unit_masks["0"].sum()) == k
