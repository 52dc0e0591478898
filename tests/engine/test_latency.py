"""Budgets in latency, with clocks that tell the same time on every machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Budget, Task
from prunus.core.budget import Clock, Timing
from prunus.core.errors import BudgetError, SpecError
from prunus.core.groups import Group, Member
from prunus.core.part import Masks
from prunus.engine import latency
from prunus.engine.cost import cost_of
from prunus.engine.latency import TRIALS, Latency
from prunus.measure.clock import latency_share
from prunus.parts.granularity import Channel

RECIPE = prunus.methods.l1_filter
EXAMPLE = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 200), nn.Linear(200, 100), nn.Linear(100, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Fake:
    """A clock by which time is a function of the pruned share of the parameters; it remembers what it was shown."""

    def __init__(self, law: Callable[[float], float]) -> None:
        self.law, self.seen = law, list[float]()

    def __call__(self, dense: nn.Module, pruned: nn.Module, example: Any) -> Timing:
        assert torch.equal(example[0], EXAMPLE[0]) and len(example[0]) == 4  # the batch as it was given
        self.seen.append(size(pruned) / size(dense))
        share = self.law(self.seen[-1])
        return Timing(share, share * 0.9, share * 1.1)


LAWS: dict[str, Callable[[float], float]] = {
    "work": lambda share: share,
    "overhead": lambda share: 0.3 + 0.7 * share,
    "steps": lambda share: -(-share * 8 // 1) / 8,
    "bumps": lambda share: share * (1.2 if int(share * 37) % 2 else 0.9),  # more units may well take less time
}


def pruned(clock: Clock | None, share: float, model: nn.Module | None = None, **settings: Any) -> prunus.Result:
    task = Task(example=EXAMPLE, clock=clock)
    return prunus.prune(model or dense(), task, RECIPE, budget=Budget(latency=share), **settings)


def dense() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("law", LAWS)
def test_what_comes_out_was_measured_to_fit(law: str, share: float) -> None:
    clock, model = Fake(LAWS[law]), dense()
    before = {n: p.clone() for n, p in model.named_parameters()}
    result = pruned(clock, share, model)
    left = size(result.compact()) / size(model)
    assert LAWS[law](left) <= share
    assert clock.seen[-1] == left  # what was timed last is what came out
    assert len(clock.seen) <= 2 * TRIALS
    assert len(set(clock.seen)) <= TRIALS
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("law", ["work", "overhead", "steps"])
def test_where_more_units_take_more_time_nothing_much_larger_fits(law: str, share: float) -> None:
    """Against every number of units: within the resolution of the search, or two per cent of the budget."""
    result = pruned(Fake(LAWS[law]), share)
    units = sum(m.numel() for m in result.unit_masks.values())
    kept = sum(int(m.sum()) for m in result.unit_masks.values())
    step = max(2, units // 2 ** (TRIALS - 2))
    best = LAWS[law](size(result.compact()) / size(dense()))
    larger = prunus.prune(dense(), Task(example=EXAMPLE), RECIPE, sparsity=1 - (kept + step) / units)
    assert best >= 0.98 * share or LAWS[law](size(larger.compact()) / size(dense())) > share


def test_the_same_clock_gives_the_same_masks() -> None:
    one, other = (pruned(Fake(LAWS["overhead"]), 0.6).unit_masks for _ in range(2))
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_a_lucky_timing_is_not_believed() -> None:
    """The first look at a model is too good by a third; the second one tells the truth."""

    class Flatterer(Fake):
        def __call__(self, dense: nn.Module, pruned: nn.Module, example: Any) -> Timing:
            first = size(pruned) / size(dense) not in self.seen
            timing = super().__call__(dense, pruned, example)
            return Timing(*(v * (0.67 if first else 1.0) for v in timing))

    clock = Flatterer(LAWS["work"])
    result = pruned(clock, 0.5)
    left = size(result.compact()) / size(dense())
    assert left <= 0.5
    refused = [s for s in clock.seen if 0.5 < s <= 0.5 / 0.67]
    assert refused  # they had looked as if they fitted
    assert max(s for s in clock.seen if s <= 0.5) == left


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_a_second_timing_that_is_unlucky_costs_little(share: float) -> None:
    """What fitted narrowly and then no more gives way to something a little smaller, not to the smallest."""

    class Nervous(Fake):
        def __call__(self, dense: nn.Module, pruned: nn.Module, example: Any) -> Timing:
            first = size(pruned) / size(dense) not in self.seen
            timing = super().__call__(dense, pruned, example)
            return Timing(*(v * (0.985 if first else 1.015) for v in timing))

    left = size(pruned(Nervous(LAWS["work"]), share).compact()) / size(dense())
    assert 0.9 * share < left <= share / 1.015


def test_the_record_says_what_was_measured() -> None:
    clock = Fake(LAWS["work"])
    session = prunus.Session(dense(), RECIPE, Task(example=EXAMPLE, clock=clock), Budget(latency=0.6))
    assert isinstance(session.cost, Latency) and session.cost.record() == {}
    session.start()
    record = session.cost.record()
    left = size(session.result().compact()) / size(dense())
    assert record["latency"] == pytest.approx(left) and 0.5 < left <= 0.6
    assert record["latency_quartiles"] == pytest.approx([0.9 * left, 1.1 * left])
    assert record["timed"] == len(set(clock.seen)) <= TRIALS
    assert record.items() <= session.result().history[-1].items()
    assert json.loads(json.dumps(session.result().to_dict()))["history"][-1]["latency"] == record["latency"]


def test_multiples_and_minima_hold_in_this_currency_too() -> None:
    clock = Fake(LAWS["work"])
    recipe = replace(RECIPE, granularity=Channel(round_to=8, at_least=20))
    result = prunus.prune(dense(), Task(example=EXAMPLE, clock=clock), recipe, budget=Budget(latency=0.3))
    counts = [int(m.sum()) for m in result.unit_masks.values()]
    assert all(k % 8 == 0 and k >= 24 for k in counts) and size(result.compact()) <= 0.3 * size(dense())


def test_a_budget_out_of_reach_says_what_was_measured() -> None:
    clock, model = Fake(lambda share: 0.8 + 0.2 * share), dense()
    before = {n: p.clone() for n, p in model.named_parameters()}
    session = prunus.Session(model, RECIPE, Task(example=EXAMPLE, clock=clock), Budget(latency=0.7))
    with pytest.raises(BudgetError, match=r"0\.7 of the latency cannot be met.*minimum 0\.80\d* is left \(measured"):
        session.start()
    assert len(clock.seen) == 1
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_floor_that_fitted_once_and_never_again_is_out_of_reach() -> None:
    answers = iter([0.5, *[0.9] * 40])

    def clock(*_: Any) -> Timing:
        share = next(answers)
        return Timing(share, share, share)

    with pytest.raises(BudgetError, match=r"minimum 0\.9 is left"):
        pruned(clock, 0.6)


def test_the_whole_time_is_the_whole_model() -> None:
    def clock(*_: Any) -> Timing:
        raise AssertionError("there is nothing to time")

    assert pruned(clock, 1.0).sparsity == 0.0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clock_that_tells_no_time_is_refused(value: float) -> None:
    with pytest.raises(SpecError, match="the clock says"):
        pruned(lambda *_: Timing(0.5, value, 0.6), 0.6)


def test_latency_needs_an_example_and_brings_its_clock() -> None:
    with pytest.raises(SpecError, match=r"an input to time: pass Task\(example="):
        cost_of(dense(), Task(clock=latency_share), "latency")
    cost = cost_of(dense(), Task(example=EXAMPLE), "latency")
    assert isinstance(cost, Latency) and cost.clock is latency_share


def test_a_gradual_schedule_meets_the_share_of_each_event() -> None:
    """Every event is a search of its own, and what was cut stays cut."""
    clock = Fake(LAWS["work"])
    recipe = replace(RECIPE, schedule=prunus.parts.schedule.Iterative(rounds=3))
    task = Task(example=EXAMPLE, clock=clock)
    session = prunus.Session(dense(), recipe, task, Budget(latency=0.4))
    asked = [e.density for e in session.events]
    session.start()
    assert len(asked) == 3 and asked[-1] == pytest.approx(0.4)
    assert size(session.result().compact()) <= 0.4 * size(dense())


# The search alone


def units(total: int) -> tuple[Group, Callable[[int], Masks]]:
    group = Group("g", (total,), (Member("w", 0),), weight=(total, 1))
    return group, lambda k: {"g": torch.arange(total) < max(k, 1)}


@pytest.mark.parametrize("total", [2, 3, 10, 1000])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.77, 0.999])
def test_the_search_against_every_count(total: int, keep: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is exactly the kept share: the search must end within its resolution of the largest count that fits."""
    monkeypatch.setattr(latency, "CLOSE", 1.0)
    group, at = units(total)
    search = Latency(nn.Identity(), EXAMPLE, lambda *_: Timing(1, 1, 1))
    timed = []

    def time(groups: tuple[Group, ...], masks: Masks) -> Timing:
        timed.append(int(masks["g"].sum()))
        return Timing(timed[-1] / total, 1, 1)

    monkeypatch.setattr(search, "time", time)
    best = max((k for k in range(1, total + 1) if k / total <= keep), default=0)
    if not best:
        with pytest.raises(BudgetError):
            search.search(at, total, keep, (group,))
        return
    found = int(search.search(at, total, keep, (group,))["g"].sum())
    assert best - max(0, total // 2 ** (TRIALS - 1)) - 1 <= found <= best
    assert found == best or total > 2 ** (TRIALS - 1)
    assert len(timed) <= TRIALS + 1 and search.trials <= TRIALS


# The clock of this machine


def test_the_clock_of_this_machine_compares_medians() -> None:
    model = Net()
    small = prunus.prune(model, Task(example=EXAMPLE), RECIPE, sparsity=0.5).compact()
    timing = latency_share(model, small, EXAMPLE, runs=30, min_seconds=0.0)
    assert 0.0 < timing.low <= timing.high and timing.share > 0.0
    assert model.training
