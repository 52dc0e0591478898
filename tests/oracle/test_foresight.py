"""Criteria for networks before training, each against a slow re-derivation on networks of a few dozen weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import KernelSaliency, MetaSensitivity, NoiseSensitivity, UnitSensitivity
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Iterative

pytestmark = pytest.mark.filterwarnings(
    "ignore::prunus.core.errors.CollapseWarning", "ignore::prunus.core.errors.PrunusWarning"
)

Batch = tuple[Tensor, Tensor]
NAMES = ("0.weight", "2.weight", "4.weight")


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(4)
    return [
        (torch.randn(6, 4, generator=draw, dtype=torch.float64), torch.randint(3, (6,), generator=draw))
        for _ in range(2)
    ]


@pytest.fixture
def task(batches: list[Batch]) -> prunus.Task:
    return prunus.Task(loss=cross_entropy, calib=batches, example=torch.zeros(1, 4, dtype=torch.float64))


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def slopes(value: Callable[[dict[str, Tensor]], float], net: nn.Module, h: float = 1e-5) -> dict[str, Tensor]:
    """d value / d mask of every weight at a mask of ones, by central differences."""
    named = dict(net.named_parameters())
    found = {n: torch.zeros_like(named[n]) for n in NAMES}
    for n in NAMES:
        for i in range(named[n].numel()):
            ends = []
            for step in (h, -h):
                masks = {k: torch.ones_like(named[k]) for k in NAMES}
                masks[n].view(-1)[i] += step
                ends.append(value(masks))
            found[n].view(-1)[i] = (ends[0] - ends[1]) / (2 * h)
    return found


def masked(net: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    other = copy.deepcopy(net)
    with torch.no_grad():
        for n, m in masks.items():
            other.get_parameter(n).mul_(m)
    return other


# SNIP without data


def inputs_seen(net: nn.Module) -> list[Tensor]:
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    return seen


def test_noise_with_uniform_labels_is_the_cross_entropy_with_the_uniform_distribution(net: nn.Sequential) -> None:
    task = prunus.Task(example=torch.full((1, 4), torch.nan))
    seen = inputs_seen(net)
    recipe = replace(methods.snip_data_free, criterion=NoiseSensitivity(labels="uniform", samples=7))
    ours = prunus.score(net, task, recipe)
    x = seen[0]
    assert x.shape == (7, 4) and x.dtype == torch.float64 and torch.isfinite(x).all()

    def loss(masks: dict[str, Tensor]) -> float:
        logits = masked(net, masks)(x)
        return float(F.cross_entropy(logits.detach(), torch.full((7, 3), 1 / 3, dtype=torch.float64)))

    for n, theirs in slopes(loss, net).items():
        torch.testing.assert_close(ours[n], theirs.abs(), rtol=1e-5, atol=1e-9)


def test_noise_with_random_labels_is_the_loss_of_some_labels(net: nn.Sequential) -> None:
    task = prunus.Task(example=torch.zeros(1, 4))
    seen = inputs_seen(net)
    recipe = replace(methods.snip_data_free, criterion=NoiseSensitivity(samples=2))
    ours = prunus.score(net, task, recipe, seed=5)["4.weight"]
    x = seen[0]
    fits = 0
    for labels in itertools.product(range(3), repeat=2):
        net.zero_grad()
        F.cross_entropy(net(x), torch.tensor(labels)).backward()
        w = net.get_parameter("4.weight")
        fits += bool(torch.allclose((w.grad * w).abs().detach(), ours))
    assert fits == 1


def test_without_data_nothing_is_asked_of_the_task_but_the_shape(net: nn.Sequential) -> None:
    with pytest.raises(SpecError, match=r"Task\(example="):
        prunus.prune(net, prunus.Task(), "snip_data_free", sparsity=0.5)
    assert methods.snip_data_free.data_free and methods.ntk_sap.data_free and methods.synflow_l2.data_free


# FORCE


def test_force_is_the_published_loop_and_weights_come_back(
    net: nn.Sequential, task: prunus.Task, batches: list[Batch]
) -> None:
    """Gradients at the pruned network, original weights for all; from the dense network anew every round."""
    rounds, density = 12, 0.3
    recipe = replace(methods.force, schedule=Iterative(rounds=rounds, revive=True))
    dense = {n: net.get_parameter(n).detach() for n in NAMES}
    total = sum(w.numel() for w in dense.values())
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in dense.items()}
    revived = 0
    for k in range(1, rounds + 1):
        work = masked(net, {n: m.double() for n, m in masks.items()})
        (sum(cross_entropy(work, b) for b in batches) / len(batches)).backward()
        saliency = {n: (work.get_parameter(n).grad * dense[n]).abs() for n in NAMES}
        edge = torch.cat([s.flatten() for s in saliency.values()]).sort(descending=True).values[
            round(density ** (k / rounds) * total) - 1
        ]  # fmt: skip
        new = {n: s >= edge for n, s in saliency.items()}
        revived += sum(int((new[n] & ~masks[n]).sum()) for n in NAMES)
        masks = new
    result = prunus.prune(net, task, recipe, sparsity=1 - density)
    assert revived > 0
    for n in NAMES:
        assert torch.equal(result.masks[n], masks[n])
        assert torch.equal(result.model.get_parameter(n), dense[n] * masks[n])


def test_force_needs_no_scheduler_and_comes_before_training(net: nn.Sequential, task: prunus.Task) -> None:
    """Its events go back to the step that they happen at, which rewinds no learning rate."""
    recipe = replace(methods.force, schedule=Iterative(rounds=3, revive=True))
    assert recipe.when == "before" and recipe.pace == "iterative"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    session = prunus.Session(net, recipe, task, sparsity=0.5, steps=4).attach(optimizer)
    assert session.fired == 3 and session.result().sparsity == pytest.approx(0.5, abs=0.01)
    with pytest.raises(SpecError, match="at=0"):
        Iterative(at=0.5, revive=True)


# NTK-SAP


def kernel_oracle(here: nn.Module, there: nn.Module, x: Tensor) -> dict[str, Tensor]:
    def distance(masks: dict[str, Tensor]) -> float:
        return float((masked(here, masks)(x) - masked(there, masks)(x)).detach().square().sum())

    return slopes(distance, here)


def test_ntk_sap_is_the_slope_of_the_distance_between_a_network_and_its_perturbation(net: nn.Sequential) -> None:
    """Of networks with weights of their own, drawn at every call, which the model's have no part in."""
    runs: list[tuple[Tensor, dict[str, Tensor]]] = []

    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        runs.append((args[0].detach(), {n: p.detach().clone() for n, p in module.named_parameters()}))

    net.register_forward_pre_hook(note)
    recipe = replace(methods.ntk_sap, criterion=KernelSaliency(samples=5, draws=1, epsilon=0.1))
    ours = prunus.score(net, prunus.Task(example=torch.zeros(1, 4)), recipe, seed=1)
    (x, first), (again, second) = runs
    assert torch.equal(x, again) and x.shape == (5, 4)
    assert not any(torch.equal(first[n], net.get_parameter(n)) for n in NAMES)
    assert all(torch.equal(first[n], second[n]) != (n in NAMES) for n in first)  # biases are not perturbed
    noise = torch.cat([((second[n] - first[n]) / 0.1).flatten() for n in NAMES])
    assert 0.6 < float(noise.std()) < 1.4 and abs(float(noise.mean())) < 0.5
    net._forward_pre_hooks.clear()
    here, there = copy.deepcopy(net), copy.deepcopy(net)
    here.load_state_dict(first)
    there.load_state_dict(second)
    for n, theirs in kernel_oracle(here, there, x).items():
        torch.testing.assert_close(ours[n], theirs.abs(), rtol=1e-5, atol=1e-8)


def test_ntk_sap_leaves_pruned_weights_out_and_draws_anew_in_every_round(net: nn.Sequential) -> None:
    weights: list[Tensor] = []
    net[0].register_forward_pre_hook(lambda module, _args: weights.append(module.weight.detach().clone()))
    recipe = replace(methods.ntk_sap, schedule=Iterative(rounds=2))
    result = prunus.prune(net, prunus.Task(example=torch.zeros(1, 4)), recipe, sparsity=0.6)
    first, _, second, _ = weights
    assert bool((first != 0).all()) and not torch.equal(first, second)
    assert int((second == 0).sum()) > 0  # round two runs the pruned network
    assert bool((second[result.masks["0.weight"]] != 0).all())


def test_ntk_sap_takes_the_statistics_of_its_own_inputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.9), nn.Linear(4, 2)).double()
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda _m, _a, y: seen.append(y.detach()))
    recipe = replace(methods.ntk_sap, criterion=KernelSaliency(samples=50), schedule=Iterative(rounds=1))
    prunus.prune(net, prunus.Task(example=torch.zeros(1, 3)), recipe, sparsity=0.5)
    assert len(seen) == 3
    for y in seen[:2]:  # while they are taken, and with them
        torch.testing.assert_close(y.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0.0)
        torch.testing.assert_close(y.var(0, unbiased=False), torch.ones(4, dtype=torch.float64), atol=0.03, rtol=0.0)


# ProsPr


def trained(net: nn.Module, batches: Iterator[Batch], steps: int, rate: float, momentum: float) -> nn.Module:
    work = copy.deepcopy(net)
    optimizer = torch.optim.SGD(work.parameters(), lr=rate, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(work, next(batches)).backward()
        optimizer.step()
    return work


@pytest.mark.parametrize(("steps", "momentum"), [(0, 0.0), (1, 0.0), (3, 0.0), (3, 0.9)])
def test_prospr_is_the_slope_of_the_loss_after_some_steps(
    net: nn.Sequential, task: prunus.Task, batches: list[Batch], steps: int, momentum: float
) -> None:
    recipe = replace(methods.prospr, criterion=MetaSensitivity(steps=steps, rate=0.2, momentum=momentum))

    def loss(masks: dict[str, Tensor]) -> float:
        turns = itertools.cycle(batches)
        return float(cross_entropy(trained(masked(net, masks), turns, steps, 0.2, momentum), next(turns)))

    ours = prunus.score(net, task, recipe)
    for n, theirs in slopes(loss, net).items():
        torch.testing.assert_close(ours[n], theirs.abs(), rtol=1e-5, atol=1e-8)


def test_prospr_of_first_order_is_the_gradient_where_training_leads(
    net: nn.Sequential, task: prunus.Task, batches: list[Batch]
) -> None:
    recipe = replace(methods.prospr, criterion=MetaSensitivity(steps=3, first_order=True))
    turns = itertools.cycle(batches)
    there = trained(net, turns, 3, 0.1, 0.0)
    there.zero_grad()
    cross_entropy(there, next(turns)).backward()
    ours = prunus.score(net, task, recipe)
    for n in NAMES:
        torch.testing.assert_close(ours[n], (net.get_parameter(n) * there.get_parameter(n).grad).abs().detach())


# Paths


def paths(layers: list[Tensor], start: Tensor) -> dict[tuple[int, int, int], float]:
    """The squared products of all paths, summed for every weight (layer, out, in) on them."""
    found: dict[tuple[int, int, int], float] = {}
    widths = [layers[0].shape[1], *(w.shape[0] for w in layers)]
    for nodes in itertools.product(*(range(n) for n in widths)):
        product = float(start[nodes[0]])
        for w, i, o in zip(layers, nodes, nodes[1:], strict=False):
            product *= float(w[o, i]) ** 2
        for layer, (i, o) in enumerate(itertools.pairwise(nodes)):
            found[layer, o, i] = found.get((layer, o, i), 0.0) + product
    return found


@pytest.mark.parametrize("data", [False, True])
def test_synflow_l2_sums_the_squares_of_all_paths(data: bool) -> None:
    torch.manual_seed(1)
    wide = (3, 4, 3, 2)
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(wide)]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()
    draw = torch.Generator().manual_seed(2)
    x = [torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (5, 2)]
    task = prunus.Task(calib=x, example=torch.zeros(1, 3))
    start = torch.cat(x).square().mean(0) if data else torch.ones(3)
    ours = prunus.score(net, task, "synflow_l2_data" if data else "synflow_l2")
    theirs = paths([layer.weight.detach() for layer in layers], start)
    for (layer, o, i), value in theirs.items():
        assert float(ours[f"{2 * layer}.weight"][o, i]) == pytest.approx(value, rel=1e-12)
    assert methods.synflow_l2_data.reads == "inputs"


def test_synflow_l2_squares_what_a_normalization_multiplies_by() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, eps=1e-12), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0, 3.0]))
        net[1].running_var.copy_(torch.tensor([4.0, 0.25, 1.0, 9.0]))
        net[3].bias.zero_()
    ours = prunus.score(net.eval(), prunus.Task(example=torch.zeros(1, 3)), "synflow_l2")
    factor = net[1].weight.square() / net[1].running_var
    theirs = net[0].weight.square() * (factor * net[3].weight.square().sum(0))[:, None]
    torch.testing.assert_close(ours["0.weight"], theirs.detach(), rtol=1e-9, atol=0.0)


def test_path_scores_do_not_change_when_one_layer_grows_and_the_next_shrinks(task: prunus.Task) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    before = prunus.score(net, task, "synflow_l2")
    with torch.no_grad():
        net[0].weight.mul_(7.0)
        net[2].weight.div_(7.0)
    after = prunus.score(net, task, "synflow_l2")
    for n, s in before.items():
        torch.testing.assert_close(after[n], s, rtol=1e-12, atol=0.0)


# Structured SNIP


def test_unit_sensitivity_is_the_slope_of_the_loss_in_a_gate(batches: list[Batch], task: prunus.Task) -> None:
    """With relu, a gate on a neuron scales its weights and its bias."""
    torch.manual_seed(6)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    recipe = replace(methods.snap_it, criterion=UnitSensitivity())
    ours = prunus.score(net, task, recipe)
    h = 1e-6
    for layer in (0, 2):
        for u in range(len(net[layer].weight)):
            ends = []
            for step in (h, -h):
                work = copy.deepcopy(net)
                with torch.no_grad():
                    work[layer].weight[u] *= 1 + step
                    work[layer].bias[u] *= 1 + step
                ends.append(float(sum(cross_entropy(work, b) for b in batches)) / len(batches))
            # Scores are averaged over batches after the absolute value: with equal signs it is the slope of the mean.
            slope = abs(ends[0] - ends[1]) / (2 * h)
            assert float(ours[str(layer)][u]) >= slope - 1e-7
    one = prunus.score(net, replace(task, calib=batches[:1]), recipe)
    work = copy.deepcopy(net)
    cross_entropy(work, batches[0]).backward()
    for layer in (0, 2):
        w, b = work[layer].weight, work[layer].bias
        theirs = ((w * w.grad).sum(1) + b * b.grad).abs().detach()
        torch.testing.assert_close(one[str(layer)], theirs)


def test_3sp_divides_by_what_a_channel_costs(task: prunus.Task) -> None:
    torch.manual_seed(6)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    worth = prunus.score(net, task, "structured_snip")
    price = {"0": 4 + 4, "2": 5 + 3}  # multiply-accumulates of a neuron's row and of the column that reads it
    per = sorted(((float(s) / price[n], n, i) for n, v in worth.items() for i, s in enumerate(v)), reverse=True)
    result = prunus.prune(net, task, methods.structured_snip, sparsity=0.5)
    kept = {(n, i) for n, m in result.unit_masks.items() for i in m.nonzero().flatten().tolist()}
    assert kept == {(n, i) for _, n, i in per[: len(kept)]}


# What holds for all of them


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "force", "prospr", "synflow_l2", "biased_loss"])
def test_masks_do_not_hang_on_the_order_in_which_layers_are_declared(name: str, batches: list[Batch]) -> None:
    class Net(nn.Module):
        def __init__(self, order: tuple[str, ...]) -> None:
            super().__init__()
            sizes = {"a": (4, 6), "b": (6, 5), "c": (5, 3)}
            for n in order:
                setattr(self, n, nn.Linear(*sizes[n]))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    torch.manual_seed(7)
    one, other = Net(("a", "b", "c")).double(), Net(("c", "a", "b")).double()
    other.load_state_dict(one.state_dict())
    task = prunus.Task(loss=cross_entropy, calib=batches, example=batches[0][0])
    recipe = methods.get(name)
    if isinstance(recipe.schedule, Iterative):
        recipe = replace(recipe, schedule=replace(recipe.schedule, rounds=5))
    masks: list[dict[str, Any]] = [prunus.prune(m, task, recipe, sparsity=0.4).masks for m in (one, other)]
    assert set(masks[0]) == set(masks[1])
    assert all(torch.equal(masks[0][n], masks[1][n]) for n in masks[0])


def test_snip_does_not_change_when_a_layer_grows_and_the_next_shrinks(batches: list[Batch]) -> None:
    """|g w| of a positively homogeneous network."""
    torch.manual_seed(8)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    task = prunus.Task(loss=cross_entropy, calib=batches)
    before = prunus.score(net, task, "snip")
    with torch.no_grad():
        net[0].weight.mul_(3.0)
        net[0].bias.mul_(3.0)
        net[2].weight.div_(3.0)
    after = prunus.score(net, task, "snip")
    for n, s in before.items():
        torch.testing.assert_close(after[n], s, rtol=1e-10, atol=1e-15)


def test_channels_can_be_scored_by_all_of_them(net: nn.Sequential, task: prunus.Task) -> None:
    for name in ("snip_data_free", "ntk_sap", "prospr", "synflow_l2"):
        single = prunus.score(net, task, name)
        whole = prunus.score(net, task, replace(methods.get(name), granularity=Channel()))
        torch.testing.assert_close(whole["0"], single["0.weight"].sum(1))
