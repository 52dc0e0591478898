"""Budgets in latency whose candidates are priced before they are made, and HALP's knapsack as their solver."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Budget, Task
from prunus.core.budget import Timing
from prunus.core.errors import SpecError
from prunus.core.groups import Group, Member
from prunus.core.part import Masks
from prunus.engine.latency import TRIALS, Latency
from prunus.engine.prepare import solved
from prunus.measure import clock
from prunus.parts.allocation import GlobalRanking, LatencyKnapsack, Uniform
from prunus.parts.schedule import OneShot

EXAMPLE = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 96), nn.Linear(96, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def dense() -> Net:
    torch.manual_seed(0)
    return Net()


@dataclass
class Steps:
    """Prices by which a layer takes its weights in steps of 16 units, and some time that nothing changes."""

    shapes: Mapping[str, tuple[int, ...]]
    fixed: float = 200.0
    asked: int = 0

    def ms(self, left: Mapping[str, Sequence[int]], of: Sequence[str] | None = None) -> float:
        self.asked += 1
        names = [n for n in (self.shapes if of is None else of) if len(self.shapes[n]) == 2]
        took = 0.0
        for name in names:
            out, inputs = left.get(name, self.shapes[name])
            took += (-(-out // 16) * 16) * (-(-inputs // 16) * 16)
        return took + (self.fixed if of is None else 0.0)

    def share(self, left: Mapping[str, Sequence[int]]) -> float:
        return self.ms(left) / self.ms({})


def true_time(model: nn.Module, off: float = 1.0, fixed: float = 200.0) -> float:
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    return off * Steps(shapes, 0.0).ms({}) + fixed


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """This machine's clock and tables, by a law; what the clock was shown."""
    seen: list[float] = []

    def tells(model: nn.Module, small: nn.Module, example: Any, **_: Any) -> Timing:
        seen.append(true_time(small) / true_time(model))
        return Timing(seen[-1], seen[-1], seen[-1])

    def prices(model: nn.Module, *_: Any) -> Steps:
        return Steps({n: tuple(p.shape) for n, p in model.named_parameters()})

    monkeypatch.setattr(clock, "latency_share", tells)
    monkeypatch.setattr(prunus, "default_clock", lambda: tells)
    monkeypatch.setattr(prunus, "layer_prices", prices)
    return seen


RANKED = replace(prunus.methods.l1_filter, allocate=GlobalRanking())


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("solver", ["knapsack", "own"])
def test_what_comes_out_fits_and_few_candidates_are_made(priced: list[float], share: float, solver: Any) -> None:
    model = dense()
    result = prunus.prune(model, Task(example=EXAMPLE), RANKED, budget=Budget(latency=share, solver=solver))
    took = true_time(result.compact()) / true_time(model)
    assert took <= share and priced[-1] == pytest.approx(took)
    record = result.history[-1]
    assert record["latency"] == pytest.approx(took) == record["latency_predicted"]
    assert record["timed"] <= TRIALS


def test_the_default_solver_is_the_knapsack_for_rankings_alone(priced: list[float]) -> None:
    def allocation(recipe: prunus.Recipe, budget: Budget, task: Task | None = None) -> Any:
        return prunus.Session(dense(), recipe, task or Task(example=EXAMPLE), budget).recipe.allocate

    own = GlobalRanking(rounding="ceil", normalize="mean")
    ranked = replace(RANKED, allocate=own)
    for budget in (Budget(latency=0.5), Budget(latency=0.5, solver="knapsack")):
        expected = LatencyKnapsack(measured=True, rounding="ceil", normalize="mean")
        assert allocation(ranked, budget) == expected
    for budget in (Budget(latency=0.5, solver="own"), Budget(0.5), Budget(macs=0.5)):
        assert allocation(ranked, budget) == own
    # Another clock has no tables: multiply-accumulates in steps stand in for them.
    other = Task(example=EXAMPLE, clock=lambda *_: Timing(0.1, 0.1, 0.1))
    assert allocation(ranked, Budget(latency=0.5), other) == replace(expected, measured=False)
    uniform = replace(RANKED, allocate=Uniform())
    assert allocation(uniform, Budget(latency=0.5)) == Uniform()
    given = LatencyKnapsack(table=(("first", tuple(float(k) for k in range(97))),))
    assert allocation(replace(RANKED, allocate=given), Budget(latency=0.5)) == given
    assert solved(prunus.methods.halp, Budget(latency=0.5), Task()).allocate == LatencyKnapsack(measured=True)
    unstructured = solved(prunus.methods.snip, Budget(latency=0.5), Task())
    assert unstructured == prunus.methods.snip  # refused later, in words that say so


def test_a_solver_is_for_latency_alone() -> None:
    with pytest.raises(SpecError, match="solver='own': a budget in latency takes"):
        Budget(macs=0.5, solver="own")
    # Types are checked while tests run: past them, as a plain caller gets there.
    with pytest.raises((SpecError, TypeError), match="greedy"):
        Budget(latency=0.5, solver="greedy")  # type: ignore[arg-type]


def test_the_solver_stays_with_the_budget_of_every_event() -> None:
    assert Budget(latency=0.5, solver="own").at(0.7) == Budget(latency=0.7, solver="own")


def test_the_knapsack_keeps_more_for_the_time_than_the_ranking(priced: list[float]) -> None:
    """Sum of the scores that are kept, in the same time."""
    kept = {}
    for solver in ("knapsack", "own"):
        budget = Budget(latency=0.5, solver=solver)  # type: ignore[arg-type]
        recipe = replace(RANKED, schedule=OneShot())
        result = prunus.prune(dense(), Task(example=EXAMPLE), recipe, budget=budget)
        scores = prunus.score(dense(), Task(example=EXAMPLE), recipe)
        kept[solver] = sum(float(scores[n][m].sum()) for n, m in result.unit_masks.items())
    assert kept["knapsack"] >= kept["own"]


# The search alone


def units(total: int) -> tuple[Group, Any]:
    group = Group("g", (total,), (Member("w", 0),), weight=(total, 1))
    return group, lambda k: {"g": torch.arange(total) < max(k, 1)}


@dataclass
class Guess:
    """A price that is a power of the kept share."""

    total: int
    power: float

    def share(self, left: Mapping[str, Sequence[int]]) -> float:
        return float((left.get("w", (self.total, 1))[0] / self.total) ** self.power)

    def ms(self, left: Mapping[str, Sequence[int]], of: Sequence[str] | None = None) -> float:
        return self.share(left)


@pytest.mark.parametrize("total", [2, 10, 1000])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.77])
@pytest.mark.parametrize("power", [1.0, 0.5, 3.0, 0.0])
def test_a_wrong_prediction_costs_timings_and_not_the_promise(
    total: int, keep: float, power: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is the kept share to the power of 1.5 and some overhead; the guess may be right, wrong, or say nothing."""
    group, at = units(total)
    model = nn.Identity()
    model.register_parameter("w", nn.Parameter(torch.zeros(total, 1)))
    search = Latency(model, EXAMPLE, lambda *_: Timing(1, 1, 1), lambda: Guess(total, power))

    def law(k: int) -> float:
        return float(0.04 + 0.96 * (k / total) ** 1.5)

    def time(groups: tuple[Group, ...], masks: Masks) -> Timing:
        share = law(int(masks["g"].sum()))
        return Timing(share, share, share)

    monkeypatch.setattr(search, "time", time)
    fitting = [k for k in range(1, total + 1) if law(k) <= keep]
    if not fitting:
        pytest.skip("out of reach")
    found = int(search.search(at, total, keep, (group,))["g"].sum())
    assert law(found) <= keep and search.trials <= TRIALS
    assert law(found) >= 0.98 * keep or fitting[-1] - found <= max(1, total // 2 ** (TRIALS // 2 - 1))
    if power == 1.0 and total == 1000 and keep > 0.1:
        assert search.trials <= 6


def test_the_best_masks_of_a_line_are_those_of_every_choice() -> None:
    """The line of the knapsack against all counts of three small layers."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"a": 4, "b": 3, "c": 5}
    space = {n: Group(n, (u,), (Member(n, 0),), weight=(u, 1), at_least=1) for n, u in sizes.items()}
    scores = {n: torch.rand(u, generator=generator, dtype=torch.float64) for n, u in sizes.items()}
    tables = {
        n: (torch.cat([torch.zeros(1), torch.randint(0, 4, (u,), generator=generator).cumsum(0)])).double()
        for n, u in sizes.items()
    }
    whole = sum(float(t[-1]) for t in tables.values())
    part = LatencyKnapsack(measured=True, levels=int(whole))
    along = part.line(scores, space, cost=tables)
    best = {n: s.sort(descending=True).values.cumsum(0) for n, s in scores.items()}
    every = list(itertools.product(*(range(1, u + 1) for u in sizes.values())))

    def cost(z: tuple[int, ...]) -> float:
        return sum(float(tables[n][c]) for n, c in zip(sizes, z, strict=True))

    def worth(z: tuple[int, ...]) -> float:
        return sum(float(best[n][c - 1]) for n, c in zip(sizes, z, strict=True))

    for share in [k / 40 for k in range(1, 40)]:
        masks = along(share)
        z = tuple(int(masks[n].sum()) for n in sizes)
        assert worth(z) == pytest.approx(max(worth(y) for y in every if cost(y) <= cost(z)))
    assert [int(m.sum()) for m in along(0.0).values()] == [1, 1, 1]
    assert all(bool(m.all()) for m in along(1.0).values())


def test_latencies_of_layers_are_read_off_tables(priced: list[float]) -> None:
    """Each group alone: the time of the weights that it is in, at every count, the others whole."""
    from prunus.core.evidence import Sources
    from prunus.parts.evidence.latency import LayerLatencyEvidence
    from prunus.parts.granularity import Channel

    model = dense()
    groups = Channel()(model, EXAMPLE)
    parameters = dict(model.named_parameters())
    prices = Steps({n: tuple(p.shape) for n, p in parameters.items()})
    sources = Sources(model, Task(example=EXAMPLE), groups, parameters, torch.Generator(), prices=lambda: prices)
    table = next(iter(LayerLatencyEvidence(step=4).collect(sources)))
    whole = true_time(model)
    # first: 6 inputs count as 16, and the 96 outputs are read by 64 of the second layer
    expected = [(-(-c // 16) * 16) * (16 + 64) / whole for c in range(97)]
    assert table["first"].tolist() == pytest.approx(expected)
    # With 32 units of the first layer left, the second has a third of its inputs.
    first = next(g for g in groups if g.name.startswith("first"))
    second = next(g for g in groups if g.name.startswith("second"))
    sources.masks = {first.name: torch.arange(96) < 32}
    table = next(iter(LayerLatencyEvidence(step=4).collect(sources)))
    assert table[second.name].tolist() == pytest.approx([(-(-c // 16) * 16) * (32 + 16) / whole for c in range(65)])
    assert priced == []
