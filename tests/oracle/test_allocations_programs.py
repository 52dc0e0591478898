"""Integer programs against trying everything."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.budget import Timing
from prunus.core.errors import SpecError
from prunus.core.evidence import Sources
from prunus.engine.cost import cost_of
from prunus.parts.allocation import BilinearProgram, DependenceProgram, GlobalRanking, LatencyKnapsack, TwoConstraint
from prunus.parts.allocation.bilinear import chosen
from prunus.parts.allocation.counted import CountCost
from prunus.parts.allocation.dependence import importance
from prunus.parts.allocation.knapsack import frontier
from prunus.parts.allocation.two_constraints import two_ceilings
from prunus.parts.evidence.cost import CountCostEvidence
from prunus.parts.evidence.dependence import FeatureGramEvidence, nhsic
from prunus.parts.evidence.latency import LayerLatencyEvidence
from prunus.parts.granularity import Channel
from tests.contract.models import CASES
from tests.oracle.test_allocations import Small, best, channels, counts, drawn, layers, small_task

# Two ceilings at once


@pytest.mark.parametrize("seed", range(15))
def test_two_ceilings_are_met_within_the_relaxations_gap(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = 11
    s = torch.rand(n, generator=generator, dtype=torch.float64)
    f = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)[torch.randint(3, (n,), generator=generator)]
    most, ceiling = 6, 0.35 * float(f.sum())
    keep = two_ceilings(s, f, most, ceiling)
    assert int(keep.sum()) <= most and float(f[keep].sum()) <= ceiling + 1e-9
    optimum = max(
        float(s[list(z)].sum())
        for k in range(most + 1)
        for z in itertools.combinations(range(n), k)
        if float(f[list(z)].sum()) <= ceiling
    )
    value = float(s[keep].sum())
    assert optimum - 2 * float(s.max()) <= value <= optimum + 1e-12
    assert value >= 0.8 * optimum  # far better than the bound promises
    # Nothing that still fits was left out.
    if int(keep.sum()) < most:
        assert float(f[~keep].min()) > ceiling - float(f[keep].sum())


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_a_ceiling_that_does_not_bind_leaves_the_global_ranking(density: float) -> None:
    space = layers()
    scores = drawn(space)
    cost = {n: torch.full((*s.shape, 1), 2.0) for n, s in scores.items()}
    masks = TwoConstraint(share=0.6)(scores, density, space, cost=cost)
    assert all(torch.equal(m, GlobalRanking()(scores, density, space)[n]) for n, m in masks.items())


def test_costly_layers_give_way() -> None:
    space = layers()
    scores = drawn(space)
    price = {"first": 64.0, "middle": 16.0, "last": 1.0}
    cost = {n: torch.full((*s.shape, 1), price[n]) for n, s in scores.items()}
    everything = sum(float(c.sum()) for c in cost.values())
    masks = TwoConstraint(share=0.2)(scores, 0.5, space, cost=cost)
    spent = sum(float(cost[n].squeeze(-1)[m].sum()) for n, m in masks.items())
    assert spent <= 0.2 * everything and sum(counts(masks).values()) <= 391 and best(masks, scores)
    assert spent > 0.2 * everything - 64 and counts(masks)["last"] == 80
    whole = TwoConstraint(share=0.2)(scores, 1.0, space, cost=cost)
    assert all(m.all() for m in whole.values())


def test_layers_keep_their_minimum_under_both_ceilings() -> None:
    space = channels(6, 6)
    scores = {"l0": torch.rand(6, dtype=torch.float64), "l1": torch.rand(6, dtype=torch.float64) + 5}
    cost = {"l0": torch.full((6, 1), 100.0), "l1": torch.ones(6, 1)}
    assert counts(TwoConstraint(share=0.2)(scores, 0.5, space, cost=cost)) == {"l0": 1, "l1": 5}


# The knapsack


@pytest.mark.parametrize("seed", range(6))
def test_every_capacity_has_its_best_choice(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = {"a": 4, "b": 3, "c": 5}
    scores = {n: np.sort(generator.random(u))[::-1] for n, u in sizes.items()}
    values = {n: np.concatenate([[0], np.cumsum(s)]) for n, s in scores.items()}
    weights = {n: np.concatenate([[0], np.cumsum(generator.integers(0, 4, u))]) for n, u in sizes.items()}
    allowed = {n: np.arange(1, u + 1) for n, u in sizes.items()}
    found = frontier(values, weights, allowed)
    every = [
        (
            sum(int(weights[n][c]) for n, c in zip(sizes, z, strict=True)),
            sum(values[n][c] for n, c in zip(sizes, z, strict=True)),
        )
        for z in itertools.product(*(range(1, u + 1) for u in sizes.values()))
    ]
    lowest = min(w for w, _ in every)
    highest = sum(int(w[-1]) for w in weights.values())
    assert len(found) == highest - lowest + 1
    for capacity, z in zip(range(lowest, highest + 1), found, strict=True):
        assert sum(int(weights[n][z[n]]) for n in z) <= capacity
        assert sum(values[n][z[n]] for n in z) == pytest.approx(max(v for w, v in every if w <= capacity))


def test_whole_steps_are_kept_and_the_count_is_exact() -> None:
    """Both layers cost the same per unit, in steps of four: the optimum never pays for a step and leaves it empty."""
    space = channels(16, 16)
    scores = {
        "l0": torch.linspace(2, 1, 16, dtype=torch.float64),
        "l1": torch.linspace(1.4, 0.1, 16, dtype=torch.float64),
    }
    cost = {n: torch.full((16, 1), 10.0, dtype=torch.float64) for n in scores}
    part = LatencyKnapsack(step=4)
    for density, expected in ((0.5, {"l0": 12, "l1": 4}), (0.75, {"l0": 16, "l1": 8})):
        masks = part(scores, density, {n: replace(g, at_least=0) for n, g in space.items()}, cost=cost)
        assert counts(masks) == expected and best(masks, scores)
    for k in range(2, 33):
        masks = part(scores, k / 32, space, cost=cost)
        assert sum(counts(masks).values()) == k and best(masks, scores) and min(counts(masks).values()) >= 1


def test_a_table_of_latencies_is_used_as_it_is() -> None:
    space = channels(4, 4, least=0)
    scores = {"l0": torch.tensor([4.0, 3.0, 2.0, 1.0]), "l1": torch.tensor([3.9, 2.9, 1.9, 0.9])}
    cost = {n: torch.ones(4, 1) for n in scores}
    flat, steep = (0.0, 5.0, 5.0, 5.0, 5.0), (0.0, 4.0, 8.0, 12.0, 16.0)
    part = LatencyKnapsack(table=(("l0", flat), ("l1", steep)), levels=21)
    assert counts(part(scores, 0.5, space, cost=cost)) == {"l0": 4, "l1": 0}
    with pytest.raises(SpecError, match="it needs 5"):
        LatencyKnapsack(table=(("l0", (0.0, 1.0)),))(scores, 0.5, space, cost=cost)


def test_latencies_are_measured_layer_by_layer_on_smaller_models() -> None:
    model = Small().eval()

    def clock(dense: nn.Module, small: nn.Module, example: object) -> Timing:
        """A machine that takes four stem channels, or two of the deep layer, at once."""
        time = 10 * -(-small.stem.out_channels // 4) + 3 * -(-small.deep.out_channels // 2)
        share = time / (10 + 9)
        return Timing(share, share, share)

    task = replace(small_task(), clock=clock)
    groups = Channel()(model, task.example_inputs()[0])
    sources = Sources(model, task, groups, dict(model.named_parameters()), torch.Generator())
    tables = next(iter(LayerLatencyEvidence(step=2).collect(sources)))
    assert tables["stem"].tolist() == pytest.approx([0.0] * 5)
    assert tables["deep"].tolist() == pytest.approx([0, 0, 0, 3 / 19, 3 / 19, 6 / 19, 6 / 19])
    one = replace(methods.l1_filter, allocate=LatencyKnapsack(measured=True, step=2))
    kept: dict[str, Tensor] = prunus.prune(model, task, one, sparsity=0.4).unit_masks
    assert counts(kept) == {"stem": 4, "deep": 2}  # the stem costs nothing, a step of the deep layer does


# Programs over counts


@pytest.mark.parametrize("network", sorted(CASES))
@pytest.mark.parametrize("currency", ["macs", "params"])
def test_the_cost_of_counts_is_the_cost_of_masks(network: str, currency: str) -> None:
    case = CASES[network]
    model, task = case.model(), case.task()
    groups = Channel()(model, task.example_inputs()[0])
    sources = Sources(model, task, groups, dict(model.named_parameters()), torch.Generator())
    ours = CountCost.of(next(iter(CountCostEvidence(currency).collect(sources))))
    theirs = cost_of(model, task, currency)
    dense = np.array([float(g.units) for g in groups])
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        masks = {g.name: torch.rand(g.units, generator=generator) < 0.6 for g in groups}
        kept = np.array([float(masks[n].sum()) for n in ours.names])
        assert ours(kept) / ours(dense) == pytest.approx(theirs.fraction(groups, masks), abs=1e-12)


def random_cost(generator: np.random.Generator, layers: int) -> CountCost:
    square = np.triu(generator.random((layers, layers)), 1) * (generator.random((layers, layers)) < 0.7)
    return CountCost(tuple(f"l{i}" for i in range(layers)), 5.0, generator.random(layers), (square + square.T) / 2)


@pytest.mark.parametrize("seed", range(8))
def test_the_bilinear_program_finds_the_optimum(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cost = random_cost(generator, 4)
    options = [np.sort(generator.choice(np.arange(1, 20), 4, replace=False)) for _ in range(4)]
    values = [np.cumsum(generator.random(4)) for _ in range(4)]
    every = list(itertools.product(range(4), repeat=4))

    def paid(z: tuple[int, ...]) -> float:
        return cost(np.array([float(c[i]) for c, i in zip(options, z, strict=True)]))

    def worth(z: tuple[int, ...]) -> float:
        return sum(float(v[i]) for v, i in zip(values, z, strict=True))

    lowest, highest = min(map(paid, every)), max(map(paid, every))
    for part in (0.1, 0.4, 0.8, 1.0):
        ceiling = lowest + part * (highest - lowest)
        picked = tuple(chosen(options, values, cost, ceiling, 0.0))
        assert paid(picked) <= ceiling + 1e-6
        assert worth(picked) == pytest.approx(max(worth(z) for z in every if paid(z) <= ceiling), abs=1e-7)


def test_dependence_is_measured_by_its_definition() -> None:
    """HSIC of centred features with a linear kernel is the squared covariance."""
    torch.manual_seed(4)
    model = Small().double().eval()
    x = torch.randn(7, 3, 8, 8, dtype=torch.float64)
    task = prunus.Task(calib=[x])
    sources = Sources(model, task, Channel()(model, (x,)), dict(model.named_parameters()), torch.Generator())
    grams = next(iter(FeatureGramEvidence().collect(sources)))
    first = model.norm(model.stem(x)).relu().flatten(1)
    second = model.deep(model.norm(model.stem(x)).relu()).relu().mean((2, 3))
    a, b = (f.detach() - f.detach().mean(0) for f in (first, second))
    expected = (a.T @ b).square().sum() / ((a.T @ a).square().sum().sqrt() * (b.T @ b).square().sum().sqrt())
    assert nhsic(grams["stem"], grams["deep"]) == pytest.approx(float(expected))
    assert nhsic(grams["stem"], grams["stem"]) == pytest.approx(1.0)


def test_a_layer_that_repeats_the_others_is_worth_less() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(9, 4), torch.randn(9, 6)
    grams = {n: (f - f.mean(0)) @ (f - f.mean(0)).T for n, f in (("a", one), ("b", one + 0.1), ("c", other))}
    worth = importance(grams, ("a", "b", "c", "unseen"), 3.0)
    sums = [
        nhsic(grams[n], grams[m]) + nhsic(grams[n], grams[k])
        for n, m, k in (("a", "b", "c"), ("b", "a", "c"), ("c", "a", "b"))
    ]
    ratios = np.exp(-3.0 * np.array(sums) / sum(sums))
    assert worth[:3] == pytest.approx(ratios / ratios.max()) and worth[2] > worth[0]
    assert worth[3] == pytest.approx(worth[:3].mean())


@pytest.mark.parametrize("seed", range(4))
def test_the_dependence_program_is_the_best_of_a_fine_grid(seed: int) -> None:
    """Two layers: alpha on a grid of single units, the quadratic cost exactly."""
    generator = np.random.default_rng(seed)
    space = channels(20, 30)
    cost = random_cost(generator, 2)
    worth = {"l0": 1.0, "l1": float(generator.uniform(0.3, 3.0))}
    part = DependenceProgram(beta=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunus.parts.allocation.dependence.importance", lambda *_: np.array(list(worth.values())))
        ceiling = 0.5 * cost(np.array([20.0, 30.0]))
        found = part.solve(ceiling, cost, drawn(space), space, {"grams": {}})
    every = [z for z in itertools.product(range(1, 21), range(1, 31)) if cost(np.array(z, dtype=float)) <= ceiling]

    def objective(z: tuple[int, int]) -> float:
        return worth["l0"] * z[0] / 20 + worth["l1"] * z[1] / 30

    assert cost(np.array([float(c) for c in found.values()])) <= ceiling * (1 + 1e-9)
    assert objective((found["l0"], found["l1"])) >= max(map(objective, every)) - (worth["l0"] / 20 + worth["l1"] / 30)


@pytest.mark.parametrize("allocate", [DependenceProgram(), BilinearProgram(choices=5)], ids=lambda a: type(a).__name__)
def test_programs_meet_both_kinds_of_budget(allocate: DependenceProgram | BilinearProgram) -> None:
    case = CASES["cnn"]
    recipe = replace(methods.l1_filter, allocate=allocate)
    by_units = prunus.prune(case.model(), case.task(), recipe, sparsity=0.5)
    assert sum(counts(by_units.unit_masks).values()) == 20
    by_macs = prunus.prune(case.model(), case.task(), recipe, budget=prunus.Budget(macs=0.5))
    left = cost_of(case.model(), case.task(), "macs").fraction(by_macs.groups, by_macs.unit_masks)
    assert 0.3 < left <= 0.5 + 1e-9
    with pytest.raises(prunus.errors.BudgetError if hasattr(prunus, "errors") else SpecError, match="cannot be met"):
        prunus.prune(case.model(), case.task(), recipe, budget=prunus.Budget(macs=0.001))
