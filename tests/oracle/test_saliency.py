"""Magnitude, SNIP, iterative SNIP and GraSP against their published codes, entry by entry on ResNet-20.

What the codes do (read in their repositories; re-derived here), for a density d over n weights:

- Synaptic-Flow, all methods: conv and linear weights; removes int((1 - d) n), keeps what is above the threshold; eval.
- namhoonlee/snip-public: weights and biases; keeps round(d n), by position; eval.
- mil-ad/snip, JingtongSu's SNIP: conv and linear weights; int(d n), keeps what reaches the threshold; train.
- alecwangcq/GraSP: conv and linear weights; int(s n) are ranked off, and the last of them stays; train.

The recipes: magnitude and GraSP count like Synaptic-Flow, SNIP like its own first code; all without biases, in
evaluation mode.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import prunus
from prunus import methods
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ConnectionSensitivity, GradientSignal
from prunus.parts.schedule import Iterative
from tests.oracle.rules import above_threshold, count, differences, first_k, joined, weights

Batch = tuple[Tensor, Tensor]
SPARSITIES = (0.5, 0.9, 0.98)


# Magnitude


@pytest.mark.filterwarnings("ignore::prunus.core.errors.CollapseWarning")
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_magnitude_is_synaptic_flows(net: nn.Module, sparsity: float) -> None:
    scores = {n: w.detach().abs() for n, w in weights(net).items()}
    theirs = above_threshold(scores, int((1.0 - (1.0 - sparsity)) * joined(scores).numel()))
    assert differences(prunus.prune(net, None, "magnitude", sparsity=sparsity).masks, theirs) == {}


def test_uniform_magnitude_is_synaptic_flows_local_scope(net: nn.Module) -> None:
    theirs = {n: above_threshold({n: w.detach().abs()}, int(0.9 * w.numel()))[n] for n, w in weights(net).items()}
    assert differences(prunus.prune(net, None, "magnitude_uniform", sparsity=0.9).masks, theirs) == {}


# SNIP


def sensitivity(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """|dL/dc| at c = 1 of connections w * c: the definition (eq. 5), with real gates c; gradients averaged over
    batches.
    """
    fixed = {n: w.detach() for n, w in weights(model).items()}
    gates = {n: torch.ones_like(w, requires_grad=True) for n, w in fixed.items()}
    for x, y in batches:
        logits = functional_call(model, {n: fixed[n] * gates[n] for n in fixed}, (x,))
        (F.cross_entropy(logits, y) / len(batches)).backward()
    return {n: c.grad.abs() for n, c in gates.items()}


def test_snip_scores_are_gate_gradients(net: nn.Module, task: prunus.Task, batches: list[Batch]) -> None:
    ours = prunus.score(net, task, "snip")
    for name, theirs in sensitivity(net, batches).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_snip_is_the_authors(net: nn.Module, task: prunus.Task, batches: list[Batch], sparsity: float) -> None:
    """snip-public: kappa = int(round(n * (1 - sparsity))), top_k by position (its biases left out)."""
    one = replace(task, calib=batches[:1])
    scores = sensitivity(net, batches[:1])
    theirs = first_k(scores, round(joined(scores).numel() * (1.0 - sparsity)))
    assert differences(prunus.prune(net, one, "snip", sparsity=sparsity).masks, theirs) == {}


def test_snip_in_other_codes_differs_by_rounding_alone(net: nn.Module, task: prunus.Task, batches: list[Batch]) -> None:
    """At n = 268 336 and 90 %: 26 834 kept by snip-public (round), Synaptic-Flow (removes 241 502) and this recipe;
    26 833 by mil-ad and JingtongSu (int). Nothing else differs once the mode is the same."""
    one = replace(task, calib=batches[:1])
    scores = sensitivity(net, batches[:1])
    n = joined(scores).numel()
    flow = above_threshold(scores, int((1.0 - 0.1) * n))
    reaching = first_k(scores, int(n * (1 - 0.9)))
    floor = replace(methods.snip, allocate=GlobalRanking(rounding="floor"))
    ceil = replace(methods.snip, allocate=GlobalRanking(rounding="ceil"))
    assert (n, count(flow), count(reaching)) == (268336, 26834, 26833)
    assert differences(prunus.prune(net, one, floor, sparsity=0.9).masks, flow) == {}
    assert differences(prunus.prune(net, one, ceil, sparsity=0.9).masks, reaching) == {}
    assert sum(differences(prunus.prune(net, one, "snip", sparsity=0.9).masks, reaching).values()) == 1


def test_snip_in_training_mode_is_mil_ads(net: nn.Module, task: prunus.Task, batches: list[Batch]) -> None:
    """mil-ad and JingtongSu score with batch statistics; `train_mode=True` is that reading, and leaves no trace."""
    one = replace(task, calib=batches[:1])
    scores = sensitivity(copy.deepcopy(net).train(), batches[:1])
    theirs = first_k(scores, int(joined(scores).numel() * (1 - 0.9)))
    recipe = replace(
        methods.snip, criterion=ConnectionSensitivity(train_mode=True), allocate=GlobalRanking(rounding="ceil")
    )
    before = {n: t.clone() for n, t in net.state_dict().items()}
    result = prunus.prune(net, one, recipe, sparsity=0.9)
    assert differences(result.masks, theirs) == {}
    assert differences(prunus.prune(net, one, "snip", sparsity=0.9).masks, theirs) != {}
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(result.model.get_buffer("bn1.running_mean"), before["bn1.running_mean"])


def test_iterative_snip_prunes_what_is_left_in_an_exponential_path(
    net: nn.Module, task: prunus.Task, batches: list[Batch]
) -> None:
    """de Jorge et al. 2021, algorithm 1: round t keeps d^(t/T) n of what is left, scored at the pruned weights."""
    rounds, density = 5, 1.0 - 0.97
    recipe = replace(methods.iterative_snip, schedule=Iterative(rounds=rounds))
    work = copy.deepcopy(net)
    n = joined(weights(work)).numel()
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights(work).items()}
    for t in range(1, rounds + 1):
        with torch.no_grad():
            for name, w in weights(work).items():
                w.mul_(masks[name])
        scores = {name: s.masked_fill(~masks[name], -1.0) for name, s in sensitivity(work, batches[:1]).items()}
        masks = first_k(scores, round(density ** (t / rounds) * n))
    result = prunus.prune(net, replace(task, calib=batches[:1]), recipe, sparsity=0.97)
    assert differences(result.masks, masks) == {}


# GraSP


def gradient_flow(model: nn.Module, halves: list[Batch]) -> dict[str, Tensor]:
    """-w (Hg) as alecwangcq/GraSP computes it: g summed over the halves, each half's graph against the whole g,
    logits / 200.
    """
    names = weights(model)
    whole: list[Tensor] = []
    for x, y in halves:
        part = torch.autograd.grad(F.cross_entropy(model(x) / 200, y), list(names.values()))
        whole = list(part) if not whole else [a + b for a, b in zip(whole, part, strict=True)]
    total = [torch.zeros_like(w) for w in names.values()]
    for x, y in halves:
        part = torch.autograd.grad(F.cross_entropy(model(x) / 200, y), list(names.values()), create_graph=True)
        z = sum((a * b).sum() for a, b in zip(whole, part, strict=True))
        total = [t + h for t, h in zip(total, torch.autograd.grad(z, list(names.values())), strict=True)]
    return {n: -(w.detach() * h) for (n, w), h in zip(names.items(), total, strict=True)}


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.98])
def test_grasp_is_synaptic_flows(net: nn.Module, task: prunus.Task, batches: list[Batch], sparsity: float) -> None:
    """Synaptic-Flow ranks +w (Hg) and removes the int((1 - d) n) lowest, in evaluation mode: the recipe's rule."""
    scores = {n: -s for n, s in gradient_flow(net, batches).items()}
    theirs = above_threshold(scores, int((1.0 - (1.0 - sparsity)) * joined(scores).numel()))
    assert differences(prunus.prune(net, task, "grasp", sparsity=sparsity).masks, theirs) == {}


def test_grasp_counts_exactly_where_the_threshold_is_zero(
    net: nn.Module, task: prunus.Task, batches: list[Batch]
) -> None:
    """Weights of dead units score exactly zero. With a fifth of them on the threshold, Synaptic-Flow removes them all
    (and its own check of the count stops the program); the recipe keeps the count, and what it keeps beyond scores
    zero."""
    scores = {n: -s for n, s in gradient_flow(net, batches).items()}
    n = joined(scores).numel()
    theirs = above_threshold(scores, int(0.5 * n))
    ours = prunus.prune(net, task, "grasp", sparsity=0.5).masks
    assert count(theirs) < n - n // 2 == count(ours)
    for name, mask in ours.items():
        assert bool((mask | ~theirs[name]).all())
        assert bool((scores[name][mask & ~theirs[name]] == 0).all())


def test_grasp_of_the_authors_keeps_one_weight_more(net: nn.Module, task: prunus.Task, batches: list[Batch]) -> None:
    """alecwangcq/GraSP takes the int(s n) largest of -w (Hg), then keeps what is <= the last of them; train mode."""
    scores = gradient_flow(copy.deepcopy(net).train(), batches)
    flat = sorted(joined(scores).tolist(), reverse=True)
    last = flat[int(len(flat) * 0.9) - 1]
    theirs = {n: s <= last for n, s in scores.items()}
    ours = prunus.prune(net, task, replace(methods.grasp, criterion=GradientSignal(train_mode=True)), sparsity=0.9)
    assert count(theirs) == count(ours.masks) + 1
    assert sum(differences(ours.masks, theirs).values()) == 1
    assert all(bool((theirs[n] | ~m).all()) for n, m in ours.masks.items())


def test_grasp_order_does_not_hang_on_the_temperature_of_a_linear_loss(task: prunus.Task) -> None:
    """With a loss linear in the logits, T only scales g and H, so the order stays; with cross entropy it does not."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = torch.randn(12, 6, dtype=torch.float64)
    linear = prunus.Task(loss=lambda m, b: (m(b[0]) * torch.arange(4.0)).mean(), calib=[(x,)])
    masks = [
        prunus.prune(model, linear, replace(methods.grasp, criterion=GradientSignal(temperature=t)), sparsity=0.5).masks
        for t in (1.0, 7.0, 200.0)
    ]
    assert differences(masks[0], masks[1]) == differences(masks[0], masks[2]) == {}
