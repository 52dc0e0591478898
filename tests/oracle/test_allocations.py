"""Allocations against slow and obvious re-derivations of what their papers say, on layers small enough to look at."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.evidence import Sources
from prunus.core.groups import Group, Member
from prunus.parts.allocation import (
    ComplexityAware,
    CostNormalized,
    GlobalRanking,
    Protected,
    Reallocation,
    SensitivityScan,
    StdQuality,
    Uniform,
    UniformPlus,
)
from prunus.parts.allocation.dealing import poured
from prunus.parts.evidence.cost import UnitCostEvidence
from prunus.parts.evidence.scan import ScanEvidence
from prunus.parts.granularity import Channel

SIZES = {"first": (6, 3, 3, 3), "middle": (10, 6, 3, 3), "last": (8, 10)}


def layers(least: int = 0, **sizes: tuple[int, ...]) -> dict[str, Group]:
    """Groups of single weights."""
    found = {}
    for name, shape in (sizes or SIZES).items():
        rows, columns = shape[0], torch.Size(shape[1:]).numel()
        found[name] = Group(name, (rows, columns), (Member(name),), weight=shape, at_least=least)
    return found


def channels(*counts: int, least: int = 1) -> dict[str, Group]:
    """Groups of whole channels; the weights are only names."""
    return {
        f"l{i}": Group(f"l{i}", (n,), (Member(f"w{i}", 0),), weight=(n, 4, 3, 3), at_least=least)
        for i, n in enumerate(counts)
    }


def drawn(space: dict[str, Group], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(g.shape, generator=generator, dtype=torch.float64) for n, g in space.items()}


def counts(masks: dict[str, Tensor]) -> dict[str, int]:
    return {n: int(m.sum()) for n, m in masks.items()}


def best(masks: dict[str, Tensor], scores: dict[str, Tensor]) -> bool:
    """Within a layer, nothing that stays is worth less than what goes."""
    return all(not (~m).any() or not m.any() or scores[n][m].min() >= scores[n][~m].max() for n, m in masks.items())


# Dealing out


@pytest.mark.parametrize("total", [3, 9, 14, 20, 26])
def test_what_is_poured_is_proportional_where_nothing_stops_it(total: int) -> None:
    """Every layer strictly inside its bounds has the same ratio of units to what is wanted, to within one unit."""
    wanted, least, most = {"a": 5.0, "b": 1.0, "c": 9.0}, {"a": 1, "b": 1, "c": 1}, {"a": 12, "b": 4, "c": 10}
    found = poured(wanted, least, most, total)
    assert sum(found.values()) == total
    assert all(least[n] <= found[n] <= most[n] for n in found)
    free = [n for n in found if least[n] < found[n] < most[n]]
    for one, other in itertools.combinations(free, 2):
        assert abs(found[one] - found[other] * wanted[one] / wanted[other]) <= 1 + wanted[one] / wanted[other]


def test_layers_of_which_nothing_is_wanted_come_last() -> None:
    assert poured({"a": 0.0, "b": 2.0}, {"a": 0, "b": 0}, {"a": 4, "b": 5}, 5) == {"a": 0, "b": 5}
    assert poured({"a": 0.0, "b": 2.0}, {"a": 0, "b": 0}, {"a": 4, "b": 5}, 7) == {"a": 2, "b": 5}
    assert poured({"a": 0.0, "b": 0.0}, {"a": 1, "b": 0}, {"a": 4, "b": 4}, 4) == {"a": 2, "b": 2}


# uniform+


def test_uniform_plus_spares_the_first_convolution_and_the_classifier() -> None:
    space = layers()
    scores = drawn(space)
    total = {n: g.units for n, g in space.items()}
    everything = sum(total.values())
    for density in (0.5, 0.4, 0.3):
        masks = UniformPlus(last=0.45)(scores, density, space)
        kept, k = counts(masks), -(-everything * density // 1)
        assert sum(kept.values()) == k and best(masks, scores)
        assert kept["first"] == total["first"]
        left = k - total["first"]
        if density < 0.45:
            assert kept["last"] == round(0.45 * total["last"])
            assert kept["middle"] == left - kept["last"]
        else:
            share = left / (total["middle"] + total["last"])
            assert abs(kept["last"] - share * total["last"]) < 1


def test_uniform_plus_without_a_convolution_in_front_or_room_for_it() -> None:
    linear = layers(a=(8, 10), b=(10, 10), c=(4, 10))
    kept = counts(UniformPlus()(drawn(linear), 0.1, linear))
    assert sum(kept.values()) == 22 and kept["c"] == 8 and abs(kept["a"] * 10 - kept["b"] * 8) <= 10
    space = layers()
    # The first convolution alone would take everything: uniform, and one unit more where Uniform rounds each layer up.
    kept, uniform = counts(UniformPlus()(drawn(space), 0.1, space)), counts(Uniform()(drawn(space), 0.1, space))
    assert sum(kept.values()) == 79 and all(abs(uniform[n] - kept[n]) <= 1 for n in kept)


# Quality factor times standard deviation


@pytest.mark.parametrize("density", [0.1, 0.37, 0.8])
def test_one_quality_factor_gives_every_layer_its_threshold(density: float) -> None:
    """There is a q for which the masks are exactly |w| > q std of each layer, and the total is the one asked for."""
    generator = torch.Generator().manual_seed(3)
    space = layers()
    weights = {
        n: torch.randn(*g.shape, 1, generator=generator, dtype=torch.float64) * scale
        for (n, g), scale in zip(space.items(), (0.1, 1.0, 7.0), strict=True)
    }
    scores = {n: w.squeeze(-1).abs() for n, w in weights.items()}
    masks = StdQuality()(scores, density, space, weights=weights)
    total = sum(g.units for g in space.values())
    assert sum(counts(masks).values()) == -(-total * round(density * 100) // 100)
    std = {n: float((w - w.mean()).square().mean().sqrt()) for n, w in weights.items()}
    low = max(float((scores[n][~m] / std[n]).max()) for n, m in masks.items() if (~m).any())
    high = min(float((scores[n][m] / std[n]).min()) for n, m in masks.items() if m.any())
    assert low < high
    q = (low + high) / 2
    assert all(torch.equal(m, scores[n] > q * std[n]) for n, m in masks.items())


def test_a_pruned_weight_does_not_count_in_the_deviation() -> None:
    space = layers(a=(1, 4), b=(1, 4))
    weights = {"a": torch.tensor([[[0.0], [0.0], [3.0], [-3.0]]]), "b": torch.tensor([[[1.0], [-1.0], [2.0], [-2.0]]])}
    scores = {n: w.squeeze(-1).abs() for n, w in weights.items()}
    scores["a"] = scores["a"].masked_fill(torch.tensor([[True, True, False, False]]), -torch.inf)
    masks = StdQuality()(scores, 0.25, space, weights=weights)
    # std of a is 3, so its weights stand at 1; those of b at 2/1.58 = 1.26 and 0.63.
    assert counts(masks) == {"a": 0, "b": 2}


# Costs


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.deep, self.head = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.norm(self.stem(x)).relu()).relu().mean((2, 3)))


def small_task() -> prunus.Task:
    return prunus.Task(example=torch.randn(2, 3, 8, 8))


COSTS = {
    # stem: its own 3x3x3 and bias at 8x8 places, scale and shift, and the 6 3x3 slices that read it at 4x4 places.
    "params": (27 + 1 + 2 + 54, 36 + 2),
    "macs": (27 * 64 + 54 * 16, 36 * 16 + 2),
    "memory": (64, 16),
}


@pytest.mark.parametrize("by", sorted(COSTS))
def test_what_a_unit_costs_is_what_removing_it_saves(by: str) -> None:
    """By hand, and by counting the compact network's parameters after one channel was cut out."""
    model = Small().eval()
    task = small_task()
    groups = Channel()(model, task.example_inputs()[0])
    sources = Sources(model, task, groups, dict(model.named_parameters()), torch.Generator())
    seen = dict(next(iter(UnitCostEvidence(by).collect(sources))))
    assert seen["stem"].squeeze(-1).tolist() == [float(COSTS[by][0])] * 4
    assert seen["deep"].squeeze(-1).tolist() == [float(COSTS[by][1])] * 6
    # Two channels of the stem are gone: one of `deep` reads two channels less.
    sources.masks = {"stem": torch.tensor([True, True, False, False])}
    after = dict(next(iter(UnitCostEvidence(by).collect(sources))))
    saved = {"params": 18, "macs": 18 * 16, "memory": 0}[by]
    assert after["deep"].squeeze(-1).tolist() == [COSTS[by][1] - float(saved)] * 6


def test_params_saved_are_the_compact_models() -> None:
    model = Small().eval()
    one = replace(methods.l1_filter, allocate=GlobalRanking())
    result = prunus.prune(model, small_task(), one, sparsity=0.1)
    ((name, mask),) = [(n, m) for n, m in result.unit_masks.items() if not m.all()]
    dense, left = (sum(p.numel() for p in m.parameters()) for m in (model, result.compact()))
    assert int((~mask).sum()) == 1 and dense - left == COSTS["params"][0 if name == "stem" else 1]


def test_scores_are_ranked_per_cost() -> None:
    space = channels(4, 6)
    scores = drawn(space)
    cost = {"l0": torch.full((4, 1), 10.0), "l1": torch.full((6, 1), 1.0)}
    masks = CostNormalized(by="macs")(scores, 0.5, space, cost=cost)
    ranked = sorted(
        ((float(scores[n][u] / cost[n][u]), n, u) for n in scores for u in range(len(scores[n]))), reverse=True
    )
    keep = {(n, u) for _, n, u in ranked[:5]}
    if not any(n == "l0" for n, _ in keep):  # the guard keeps the best of every layer
        keep = {(n, u) for _, n, u in ranked[:4]} | {next((n, u) for _, n, u in ranked if n == "l0")}
    assert {(n, u) for n, m in masks.items() for u in m.nonzero().squeeze(1).tolist()} == keep


def test_a_unit_that_costs_nothing_stays_and_a_pruned_one_does_not_come_back() -> None:
    space = channels(3, 3, least=0)
    scores = {"l0": torch.tensor([0.1, 0.2, -torch.inf]), "l1": torch.tensor([5.0, 6.0, 7.0])}
    cost = {"l0": torch.zeros(3, 1), "l1": torch.ones(3, 1)}
    assert counts(CostNormalized()(scores, 0.5, space, cost=cost)) == {"l0": 2, "l1": 1}


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_every_layer_keeps_its_share(density: float) -> None:
    space = channels(10, 20, 30)
    scores = {n: s * 10**i for i, (n, s) in enumerate(drawn(space).items())}
    masks = Protected(floor=0.1)(scores, density, space)
    kept = counts(masks)
    assert all(kept[n] >= 0.1 * g.units for n, g in space.items()) and sum(kept.values()) == round(60 * density)
    free = GlobalRanking()(scores, density, space)
    assert best(masks, scores) and (all(counts(free)[n] >= 0.1 * space[n].units for n in space)) <= (
        kept == counts(free)
    )


# Shares of complexity, of use


def test_a_layer_loses_its_share_of_the_complexity() -> None:
    space = channels(40, 40, 40)
    scores = drawn(space)
    cost = {"l0": torch.full((40, 1), 1.0), "l1": torch.full((40, 1), 3.0), "l2": torch.full((40, 1), 2.0)}
    masks = ComplexityAware()(scores, 0.5, space, cost=cost)
    assert {n: 40 - c for n, c in counts(masks).items()} == {"l0": 10, "l1": 30, "l2": 20} and best(masks, scores)
    # l1 cannot lose 45 of its 40: it keeps one, and the others lose the rest in proportion.
    masks = ComplexityAware()(scores, 0.25, space, cost=cost)
    assert {n: 40 - c for n, c in counts(masks).items()} == {"l0": 17, "l1": 39, "l2": 34}


def test_width_follows_the_mean_score() -> None:
    space = channels(30, 30, 30)
    scores = {n: (s - s.mean()) * 0.01 + level for (n, s), level in zip(drawn(space).items(), (1, 2, 3), strict=True)}
    assert counts(Reallocation()(scores, 0.5, space)) in ({"l0": 7, "l1": 15, "l2": 23}, {"l0": 8, "l1": 15, "l2": 22})
    assert counts(Reallocation()(scores, 0.8, space)) == {"l0": 14, "l1": 28, "l2": 30}


@pytest.mark.parametrize("currency", ["params", "macs"])
@pytest.mark.parametrize("name", ["complexity_params", "complexity_macs", "peel", "uniform_plus_random"])
def test_a_budget_in_another_currency_is_kept(name: str, currency: str) -> None:
    budget = prunus.Budget(**{currency: 0.6})
    result = prunus.prune(Small(), small_task(), name, budget=budget)
    small = result.compact() if result.recipe.structure == "structured" else None
    if small is not None and currency == "params":
        dense, left = (sum(p.numel() for p in m.parameters()) for m in (Small(), small))
        assert 0.3 < left / dense <= 0.6
    assert result.sparsity > 0.1


# The sensitivity scan


def test_the_scan_is_the_loss_with_one_layer_pruned_and_leaves_no_trace() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    batches = [(torch.randn(9, 5, dtype=torch.float64), torch.randint(3, (9,))) for _ in range(2)]
    task = prunus.Task(loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), calib=batches)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    groups = Channel()(model, (batches[0][0],))
    scores = {"0": model[0].weight.detach().abs().sum(1), "2": model[2].weight.detach().abs().sum(1)}
    sources = Sources(model, task, groups, dict(model.named_parameters()), torch.Generator())
    sources.scores, sources.settings = scores, {"grid": (0.5, 0.2)}
    losses = next(iter(ScanEvidence().collect(sources)))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    for name, k in (("0", (3, 1)), ("2", (4, 1))):
        for i, kept in enumerate(k, 1):
            twin = copy.deepcopy(model)
            gone = scores[name].argsort(descending=True)[kept:]
            with torch.no_grad():
                twin[int(name)].weight[gone] = 0
                twin[int(name)].bias[gone] = 0
            loss = sum(nn.functional.cross_entropy(twin(x), y) for x, y in batches) / 2
            assert losses[name][i] == pytest.approx(float(loss), abs=1e-12)


@pytest.mark.parametrize("density", [0.3, 0.45, 0.6, 0.83])
def test_all_layers_raise_the_loss_by_the_same_amount(density: float) -> None:
    grid = (0.75, 0.5, 0.25)
    losses = {
        "l0": torch.tensor([1.0, 1.1, 1.2, 1.3], dtype=torch.float64),
        "l1": torch.tensor([1.0, 1.4, 1.8, 2.2], dtype=torch.float64),
        "l2": torch.tensor([1.0, 0.9, 1.0, 3.0], dtype=torch.float64),  # falls first: no rise
    }
    space = channels(400, 400, 400)
    masks = SensitivityScan(grid=grid)(drawn(space), density, space, losses=losses)
    kept = counts(masks)
    assert sum(kept.values()) == round(1200 * density)

    def loss_of(name: str, share: float) -> float:
        """The monotone, piecewise linear loss, upside down: an obvious interpolation."""
        points = list(zip((1.0, *grid), torch.cummax(losses[name].clamp(min=1.0), 0).values.tolist(), strict=True))
        for (d1, a), (d2, b) in itertools.pairwise(points):
            if d2 <= share <= d1:
                return a + (d1 - share) / (d1 - d2) * (b - a)
        return float("inf")

    rises = {n: loss_of(n, k / 400) for n, k in kept.items()}
    inside = [r for n, r in rises.items() if kept[n] > 101 and r < float("inf")]
    if density > 0.3:
        assert max(inside) - min(inside) < 0.02  # one unit of 400 is worth at most 0.02


def test_below_the_scan_all_layers_are_thinned_alike() -> None:
    space = channels(100, 100)
    losses = {"l0": torch.tensor([0.0, 1.0]), "l1": torch.tensor([0.0, 9.0])}
    assert counts(SensitivityScan(grid=(0.5,))(drawn(space), 0.2, space, losses=losses)) == {"l0": 20, "l1": 20}
