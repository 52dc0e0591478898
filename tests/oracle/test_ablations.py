"""What is left of a method without its masks, weights or scores; regular masks; initializations of sparse networks."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import Recipe, methods
from prunus.core.errors import SpecError
from prunus.core.groups import Group, Member
from prunus.core.part import Allocation
from prunus.parts.allocation import GlobalRanking, Inverted, NofM, Regular, SharesOf, Shuffled, Uniform
from prunus.parts.allocation.regular import balanced, pairings, trade_
from prunus.parts.criteria import ConnectionSensitivity, GradientSignal, Magnitude, NormScale, Random
from prunus.parts.granularity import Channel
from prunus.parts.recover import ApproximateIsometry
from prunus.parts.schedule import Iterative, OneShot, Returning, Rounds

pytestmark = pytest.mark.filterwarnings(
    "ignore::prunus.core.errors.CollapseWarning", "ignore::prunus.core.errors.PrunusWarning"
)
Batch = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)]
    return nn.Sequential(*layers).double()


@pytest.fixture
def task() -> prunus.Task:
    draw = torch.Generator().manual_seed(4)
    batches = [
        (torch.randn(16, 8, generator=draw, dtype=torch.float64), torch.randint(4, (16,), generator=draw))
        for _ in range(2)
    ]
    return prunus.Task(loss=cross_entropy, calib=batches, train=batches, example=batches[0][0][:1])


def counts(masks: dict[str, Tensor]) -> dict[str, int]:
    return {n: int(m.sum()) for n, m in masks.items()}


# Inverted


@pytest.mark.parametrize("name", ["magnitude", "snip", "grasp"])
def test_inverted_keeps_what_would_go_first(net: nn.Sequential, task: prunus.Task, name: str) -> None:
    scores = prunus.score(net, task, name)
    flat = torch.cat([s.flatten() for s in scores.values()])
    k = math.ceil(0.3 * len(flat))
    worst = set(flat.argsort(stable=True)[:k].tolist())  # dead units tie at zero
    found = methods.ablated(replace(methods.get(name), allocate=GlobalRanking()), "invert")
    result = prunus.prune(net, task, found, sparsity=0.7)
    kept = torch.cat([result.masks[n].flatten() for n in scores]).nonzero().flatten().tolist()
    assert set(kept) == worst and found.name == f"{name}_invert"


def test_inverted_turns_layers_and_patterns_around_too(net: nn.Sequential, task: prunus.Task) -> None:
    w = net[0].weight.detach().abs()
    layer = prunus.prune(net, task, replace(methods.magnitude, allocate=Inverted(Uniform())), sparsity=0.5)
    assert float(w[layer.masks["0.weight"]].max()) <= float(w[~layer.masks["0.weight"]].min())
    pattern = prunus.prune(net, task, replace(methods.magnitude, allocate=Inverted(NofM())))
    for values, keep in zip(w.reshape(-1, 4), pattern.masks["0.weight"].reshape(-1, 4), strict=True):
        assert set(keep.nonzero().flatten().tolist()) == set(values.argsort()[:2].tolist())
    filters = replace(methods.l1_filter, granularity=Channel(reduce="l2"), allocate=Inverted(Uniform()))
    result = prunus.prune(net, task, filters, sparsity=0.5)
    norms = w.norm(dim=1)
    assert float(norms[result.unit_masks["0"]].max()) <= float(norms[~result.unit_masks["0"]].min())


def test_pruned_units_stay_pruned_upside_down() -> None:
    group = Group("a", (2, 3), (Member("a"),))
    scores = torch.tensor([[1.0, -torch.inf, 3.0], [2.0, -torch.inf, -torch.inf]])
    mask = Inverted()({"a": scores}, 2 / 6, {"a": group})["a"]
    assert mask.tolist() == [[True, False, False], [True, False, False]]


# Shuffled


@pytest.mark.parametrize("name", ["snip", "synflow", "erk_random", "force", "n_of_m", "l1_filter", "magnitude_uniform"])
def test_a_shuffle_keeps_as_many_in_every_layer_and_other_ones(
    net: nn.Sequential, task: prunus.Task, name: str
) -> None:
    found = methods.get(name)
    if isinstance(found.schedule, Iterative):
        found = replace(found, schedule=replace(found.schedule, rounds=6))
    shuffled = methods.ablated(found, "shuffle")
    budget = {} if name == "n_of_m" else {"sparsity": 0.6}
    whole, drawn = (prunus.prune(net, task, r, **budget) for r in (found, shuffled))
    assert counts(whole.unit_masks) == counts(drawn.unit_masks)
    assert any(not torch.equal(whole.unit_masks[n], drawn.unit_masks[n]) for n in whole.unit_masks)
    again = prunus.prune(net, task, shuffled, **budget, seed=1)
    assert any(not torch.equal(again.unit_masks[n], drawn.unit_masks[n]) for n in whole.unit_masks)
    for n, m in drawn.masks.items():  # kept weights are the user's, those that earlier rounds had zeroed included
        assert torch.equal(drawn.model.get_parameter(n), net.get_parameter(n) * m)
    if name == "n_of_m":
        assert all(bool((m.reshape(-1, 4).sum(1) == 2).all()) for m in drawn.unit_masks.values())
    assert Recipe.from_dict(json.loads(json.dumps(shuffled.to_dict()))) == shuffled


def test_every_unit_is_as_likely_to_stay(net: nn.Sequential) -> None:
    mask = torch.zeros(4, 4)
    recipe = methods.ablated("magnitude", "shuffle")
    one = nn.Sequential(nn.Linear(4, 4)).double()
    for seed in range(150):
        mask += prunus.prune(one, None, recipe, sparsity=0.5, seed=seed).masks["0.weight"]
    assert float((mask / 150 - 0.5).abs().max()) < 0.17


def test_what_trains_between_is_shuffled_at_every_event_or_after_rewinding(
    net: nn.Sequential, task: prunus.Task
) -> None:
    gradual = methods.ablated("gradual_magnitude", "shuffle")
    assert gradual.allocate == Shuffled(methods.gradual_magnitude.allocate, when="every")
    result = prunus.prune(net, task, gradual, sparsity=0.6, steps=12)
    assert result.sparsity == pytest.approx(0.6, abs=0.01)
    ticket = replace(methods.lth, schedule=Rounds(per_round=0.4))
    shuffled = methods.ablated(ticket, "shuffle")
    assert shuffled.allocate == Shuffled(ticket.allocate, when="last") and shuffled.when == "after"
    whole, drawn = (prunus.prune(net, task, r, sparsity=0.7, steps=30) for r in (ticket, shuffled))
    assert counts(whole.masks) == counts(drawn.masks)
    revived = [(drawn.masks[n] & ~whole.masks[n]) for n in whole.masks]
    assert sum(int(m.sum()) for m in revived) > 20
    named = dict(drawn.model.named_parameters())
    assert all(bool((named[n][m] != 0).all()) for n, m in drawn.masks.items())


def test_what_cannot_be_ablated_is_refused() -> None:
    with pytest.raises(SpecError, match="'shuffle', 'reinit' or 'invert'"):
        methods.ablated("snip", "scramble")
    with pytest.raises(SpecError, match="move throughout"):
        methods.ablated("rigl", "shuffle")
    with pytest.raises(SpecError, match="recovery of its own"):
        methods.ablated("snip_isometry", "reinit")
    with pytest.raises(SpecError, match="trains between"):
        Returning(Rounds())(0.5, 100)
    assert Returning(Iterative(rounds=2))(0.25, 9)[-1].rewind == 0 and Returning()(0.5, 9)[0].rewind == 0


def test_new_weights_keep_the_masks(net: nn.Sequential, task: prunus.Task) -> None:
    whole, drawn = (prunus.prune(net, task, r, sparsity=0.6) for r in ("snip", methods.ablated("snip", "reinit")))
    assert all(torch.equal(whole.masks[n], m) for n, m in drawn.masks.items())
    for n, m in drawn.masks.items():
        p = drawn.model.get_parameter(n)
        assert bool((p[~m] == 0).all()) and not bool((p[m] == net.get_parameter(n)[m]).any())


# The shares of another criterion


@pytest.mark.parametrize("like", [ConnectionSensitivity(), GradientSignal(temperature=1.0), Magnitude()], ids=repr)
def test_shares_of_another_criterion(net: nn.Sequential, task: prunus.Task, like: ConnectionSensitivity) -> None:
    model = prunus.prune(net, task, replace(methods.snip, criterion=like, allocate=GlobalRanking()), sparsity=0.7)
    recipe = replace(methods.snip_ratio_random, allocate=SharesOf(like=like))
    drawn = prunus.prune(net, task, recipe, sparsity=0.7)
    assert counts(drawn.masks) == counts(model.masks)
    assert any(not torch.equal(drawn.masks[n], m) for n, m in model.masks.items())
    assert recipe.reads == ("nothing" if like == Magnitude() else "labels")
    assert Allocation.from_dict(json.loads(json.dumps(recipe.allocate.to_dict()))) == recipe.allocate


def test_shares_of_channels_and_of_nothing(net: nn.Sequential, task: prunus.Task) -> None:
    units = replace(methods.snip_ratio_random, granularity=Channel())
    model = replace(units, criterion=ConnectionSensitivity(), allocate=GlobalRanking())
    assert counts(prunus.prune(net, task, units, sparsity=0.5).unit_masks) == counts(
        prunus.prune(net, task, model, sparsity=0.5).unit_masks
    )
    plain = prunus.prune(net, task, replace(methods.magnitude, allocate=SharesOf()), sparsity=0.5)
    assert counts(plain.masks) == counts(prunus.prune(net, task, "magnitude", sparsity=0.5).masks)
    with pytest.raises(SpecError, match="NormScale says nothing"):
        prunus.prune(net, task, replace(units, allocate=SharesOf(like=NormScale())), sparsity=0.5)


# Regular graphs


@pytest.mark.parametrize(("rows", "columns", "k"), [(16, 12, 48), (12, 16, 50), (7, 5, 11), (1, 9, 4), (9, 1, 4)])
def test_rows_and_columns_keep_equally_many(rows: int, columns: int, k: int) -> None:
    torch.manual_seed(0)
    mask = Regular().regular(torch.rand(rows, columns), k)
    assert int(mask.sum()) == k
    for axis, size in ((0, columns), (1, rows)):
        degrees = mask.sum(axis)
        assert int(degrees.min()) == k // size and int(degrees.max()) == -(-k // size)


def test_trades_never_lose_and_end_where_no_two_rows_can_gain() -> None:
    """With every pair meeting until nothing changes: no exchange of two columns between two rows gains anything."""
    torch.manual_seed(1)
    scores = torch.rand(6, 8, dtype=torch.float64)
    mask = balanced(scores, 24)
    last = float(scores[mask].sum())
    for _ in range(20):
        for first, second in pairings(6, 5, scores.device):
            trade_(mask, scores, first, second)
            now = float(scores[mask].sum())
            assert now >= last - 1e-12
            last = now
    for a in range(6):
        for b in range(6):
            for i in (mask[a] & ~mask[b]).nonzero().flatten().tolist():
                for j in (mask[b] & ~mask[a]).nonzero().flatten().tolist():
                    assert scores[a, i] + scores[b, j] >= scores[a, j] + scores[b, i] - 1e-12
    met = {frozenset(p) for x, y in pairings(6, 5, scores.device) for p in zip(x.tolist(), y.tolist(), strict=True)}
    assert len(met) == 15


def test_random_regular_masks_are_near_ramanujan() -> None:
    """The second singular value of a (c, r)-regular bipartite graph is at least about sqrt(c - 1) + sqrt(r - 1)."""
    draw = torch.Generator().manual_seed(2)
    for rows, columns, k in ((64, 64, 64 * 8), (96, 48, 96 * 6)):
        mask = Regular().regular(torch.rand(rows, columns, generator=draw), k).double()
        values = torch.linalg.svdvals(mask)
        r, c = k / rows, k / columns
        assert float(values[0]) == pytest.approx(math.sqrt(r * c))
        assert float(values[1]) < 1.1 * (math.sqrt(r - 1) + math.sqrt(c - 1))


def test_regular_masks_of_a_network_that_was_pruned_before(net: nn.Sequential, task: prunus.Task) -> None:
    twice = replace(methods.regular_random, schedule=Iterative(rounds=3))
    result = prunus.prune(net, task, twice, sparsity=0.6)
    total = sum(m.numel() for m in result.masks.values())
    assert sum(counts(result.masks).values()) == math.ceil(0.4 * total)


# Initializations


def test_isometry_ends_orthogonal_where_nothing_is_pruned_and_stationary_where_something_is() -> None:
    torch.manual_seed(4)
    part = ApproximateIsometry(iterations=4000)
    for shape in ((6, 9), (9, 6)):
        w = torch.randn(shape, dtype=torch.float64)
        w = w / torch.linalg.matrix_norm(w, 2)
        full = part.orthogonal(w, torch.ones(shape, dtype=torch.bool))
        small = full @ full.T if shape[0] < shape[1] else full.T @ full
        torch.testing.assert_close(small, torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0.0)
        keep = torch.rand(shape) < 0.6
        sparse = part.orthogonal(w * keep, keep)
        assert bool((sparse[~keep] == 0).all())
        free = sparse.clone().requires_grad_(True)
        (free.T @ free - torch.eye(shape[1], dtype=torch.float64)).square().sum().backward()
        assert float((free.grad * keep).abs().max()) < 1e-6
        before = (w * keep).T @ (w * keep) - torch.eye(shape[1], dtype=torch.float64)
        after = sparse.T @ sparse - torch.eye(shape[1], dtype=torch.float64)
        assert float(after.norm()) < float(before.norm())


def test_snip_with_isometry_keeps_snips_masks(net: nn.Sequential, task: prunus.Task) -> None:
    plain, flat = (prunus.prune(net, task, r, sparsity=0.5) for r in ("snip", "snip_isometry"))
    assert all(torch.equal(plain.masks[n], m) for n, m in flat.masks.items())

    def far(model: nn.Module) -> float:
        sizes = [torch.linalg.svdvals(model.get_parameter(n).detach()) for n in flat.masks]
        return sum(float((s - 1).square().sum()) for s in sizes)

    assert far(flat.model) < 0.3 * far(plain.model)
    assert all(bool((flat.model.get_parameter(n)[~m] == 0).all()) for n, m in flat.masks.items())
    assert all(torch.equal(flat.model[i].bias, net[i].bias) for i in (0, 2, 4))


def test_rescaling_is_hayous_factor_for_weights_of_variance_one_over_n(net: nn.Sequential, task: prunus.Task) -> None:
    """rho = E[N w^2 m]^(-1/2) where E[N w^2] = 1; else times its root."""
    with torch.no_grad():
        for i in (0, 2, 4):
            w = net[i].weight
            w.mul_((w.shape[1] * w.square().mean()).rsqrt())
    result = prunus.prune(net, task, "snip_edge_of_chaos", sparsity=0.5)
    whole = {n: bool(m.any(1).all()) for n, m in result.masks.items()}
    assert sum(whole.values()) >= 2
    for n, m in result.masks.items():
        w, now = net.get_parameter(n).detach(), result.model.get_parameter(n).detach()
        rows = m.any(1)
        rho = (w.shape[1] * (w * m)[rows].square().mean()).rsqrt() * (w.shape[1] * w[rows].square().mean()).sqrt()
        torch.testing.assert_close(now, w * m * rho)
        if whole[n]:
            theirs = (w.shape[1] * (w * m).square().mean()).rsqrt()
            torch.testing.assert_close(now, w * m * theirs)


def test_rescaling_channels_counts_those_that_are_left(net: nn.Sequential, task: prunus.Task) -> None:
    recipe = replace(methods.snip_edge_of_chaos, granularity=Channel(), allocate=Uniform(), schedule=OneShot())
    result = prunus.prune(net, task, recipe, sparsity=0.5)
    kept, columns = result.unit_masks["2"], result.unit_masks["0"]
    w, now = net[2].weight.detach(), result.model[2].weight.detach()
    factor = (w[kept].square().sum() / w[kept][:, columns].square().sum()).sqrt()
    torch.testing.assert_close(now[kept][:, columns], w[kept][:, columns] * factor)
    torch.testing.assert_close(result.model[0].weight[columns].detach(), net[0].weight[columns].detach())


def test_signs_of_the_first_weights_times_one_number_per_layer(net: nn.Sequential, task: prunus.Task) -> None:
    found = replace(methods.signed_constant, schedule=Rounds(per_round=0.5))
    session = prunus.Session(copy.deepcopy(net), found, task, sparsity=0.6, steps=9)
    optimizer = torch.optim.SGD(session.model.parameters(), lr=0.1)
    session.attach(optimizer)
    while session.fired < len(session.events):
        optimizer.zero_grad()
        cross_entropy(session.model, task.train[0]).backward()  # type: ignore[index]
        optimizer.step()
    for n in ("0.weight", "2.weight", "4.weight"):
        w, mask = net.get_parameter(n).detach(), session.result().masks[n]
        mean = float(w.mean())
        sigma = math.sqrt(sum((float(v) - mean) ** 2 for v in w.flatten()) / w.numel())
        torch.testing.assert_close(session.model.get_parameter(n).detach(), w.sign() * sigma * mask)


def test_the_teacher_of_a_rescaling_is_the_dense_network_at_the_start(net: nn.Sequential, task: prunus.Task) -> None:
    before = copy.deepcopy(net.state_dict())
    prunus.prune(net, task, "snip_edge_of_chaos", sparsity=0.5)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_random_is_what_the_seed_says(net: nn.Sequential) -> None:
    recipe = replace(methods.random, criterion=Random(), allocate=Shuffled())
    one, two = (prunus.prune(net, None, recipe, sparsity=0.5, seed=7).masks for _ in range(2))
    assert all(torch.equal(one[n], two[n]) for n in one)
