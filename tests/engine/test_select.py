"""Budgets under multiples and minima: never above the ceiling, never an empty group, and nothing larger would fit."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunus
from prunus import Budget, Task, measure
from prunus.core.budget import Currency
from prunus.core.errors import BudgetError, PrunusWarning
from prunus.core.groups import Group, Member
from prunus.core.part import Allocation
from prunus.engine.cost import Cost, cost_of
from prunus.engine.select import select
from prunus.parts.allocation import ERK, LAMP, GlobalRanking, Isomorphic, SmartRatio, Uniform
from prunus.parts.granularity import Channel

RANKINGS: list[Allocation] = [GlobalRanking(), GlobalRanking(normalize="mean"), LAMP(), Isomorphic(), Uniform()]
EVERY: list[Allocation] = [*RANKINGS, ERK(), SmartRatio()]


class Chain:
    """Linear layers of given widths, the inner ones prunable; costs are counted by hand."""

    def __init__(self, widths: list[int], multiple: int, at_least: int, prices: list[int], seed: int) -> None:
        self.widths, self.prices = widths, prices
        layers = list(itertools.pairwise(widths))
        self.groups = tuple(
            Group(
                f"h{i}",
                (out,),
                (Member(f"w{i}", 0), Member(f"b{i}", 0, None, "bias"), Member(f"w{i + 1}", 1, None, "in")),
                weight=(out, into),
                at_least=at_least,
                multiple=multiple,
                kind="neuron",
            )
            for i, (into, out) in enumerate(layers[:-1])
        )
        shapes: dict[str, tuple[int, ...]] = {f"w{i}": (out, into) for i, (into, out) in enumerate(layers)}
        shapes |= {f"b{i}": (out,) for i, (_, out) in enumerate(layers)}
        self.cost = Cost("macs", {f"w{i}": float(p) for i, p in enumerate(prices)}, shapes)
        draw = torch.Generator().manual_seed(seed)
        self.scores = {g.name: torch.rand(g.shape, generator=draw) for g in self.groups}

    def count(self, masks: Mapping[str, Tensor]) -> int:
        kept = [self.widths[0], *(int(masks[g.name].sum()) for g in self.groups), self.widths[-1]]
        return sum(p * a * b for p, (a, b) in zip(self.prices, itertools.pairwise(kept), strict=True))

    @property
    def dense(self) -> int:
        return sum(p * a * b for p, (a, b) in zip(self.prices, itertools.pairwise(self.widths), strict=True))


def quietly(allocation: Allocation, chain: Chain, share: float) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)
        return select(chain.scores, allocation, Budget(macs=share), chain.groups, chain.cost)


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.integers(3, 16), min_size=3, max_size=4),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 5),
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
    st.floats(0.05, 1.0),
    st.integers(0, 2**31),
)
def test_a_ceiling_holds_after_rounding_and_nothing_larger_fits(
    widths: list[int], multiple: int, at_least: int, prices: list[int], share: float, seed: int
) -> None:
    """Against the allocation at every number of units there is."""
    chain = Chain(widths, multiple, at_least, prices[: len(widths) - 1], seed)
    ceiling = share * chain.dense * (1 + 1e-9)
    space = {g.name: g for g in chain.groups}
    units = sum(g.units for g in chain.groups)
    for allocation in EVERY:
        every = [chain.count(allocation(chain.scores, k / units, space)) for k in range(units + 1)]
        fitting = [c for c in every if c <= ceiling]
        if every[0] > ceiling:
            with pytest.raises(BudgetError) as caught:
                quietly(allocation, chain, share)
            least = re.search(r"at its minimum ([\d.e-]+) is left", str(caught.value))
            assert least and float(least.group(1)) == pytest.approx(every[0] / chain.dense, rel=1e-3)
            continue
        masks = quietly(allocation, chain, share)
        cost = chain.count(masks)
        assert cost <= ceiling, allocation
        assert math.isclose(chain.cost.fraction(chain.groups, masks), cost / chain.dense)
        if allocation in RANKINGS:  # the others may give a layer less although they give more in all
            assert cost >= max(fitting), allocation
        for group in chain.groups:
            kept = int(masks[group.name].sum())
            assert kept == group.units or (kept % multiple == 0 and kept >= at_least), (allocation, group.name)


def test_small_groups_are_named_once_for_all() -> None:
    chain = Chain([4, 6, 16, 3], 8, 1, [1, 1, 1], 0)
    with pytest.warns(PrunusWarning, match=r"stay whole: h0 \(6 neurons\)\. Use a smaller round_to"):
        masks = select(chain.scores, GlobalRanking(), Budget(macs=0.7), chain.groups, chain.cost)
    assert bool(masks["h0"].all()) and int(masks["h1"].sum()) == 8
    chain = Chain([4, 8, 16, 3], 8, 1, [1, 1, 1], 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(chain.scores, GlobalRanking(), Budget(0.5), chain.groups, None)


def test_whole_parameters_of_a_unit_are_counted_once() -> None:
    """Two blocks that own their weights; the second one's weight is cut by another group as well."""
    blocks = Group(
        "blocks",
        (2,),
        (Member("first", unit=0), Member("bias", unit=0), Member("second", unit=1)),
        kind="block",
    )
    inner = Group("inner", (4,), (Member("second", 0),), weight=(4, 5), at_least=1)
    shapes: dict[str, tuple[int, ...]] = {"first": (3, 2), "bias": (3,), "second": (4, 5), "rest": (10,)}
    cost = Cost("params", dict.fromkeys(shapes, 1.0), shapes)
    half = torch.tensor([True, True, False, False])

    def left(first: bool, second: bool, cut: bool) -> float:
        masks = {"blocks": torch.tensor([first, second]), "inner": half if cut else torch.ones(4, dtype=torch.bool)}
        return cost.fraction((blocks, inner), masks) * 39

    assert left(True, True, False) == pytest.approx(39)
    assert left(False, True, False) == pytest.approx(30)
    assert left(True, False, False) == left(True, False, True) == pytest.approx(19)
    assert left(False, True, True) == pytest.approx(20)


# On networks


class Small(nn.Module):
    """Convolutions of 24, 20 and 4 channels with a residual, and a head: one group is smaller than the multiple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(24, 20, 3, padding=1, bias=False), nn.Conv2d(20, 24, 1)
        self.norm, self.narrow, self.head = nn.BatchNorm2d(20), nn.Conv2d(24, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.outer(self.norm(self.inner(x)).relu())).relu()
        return self.head(self.narrow(x).relu().mean((2, 3)))


IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:these groups have fewer units")
@pytest.mark.parametrize("allocation", [GlobalRanking(), Isomorphic(), SmartRatio()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("currency", ["macs", "params", "bytes"])
def test_macs_params_and_bytes_do_not_rise_after_rounding(
    allocation: Allocation, currency: Literal["macs", "params", "bytes"]
) -> None:
    recipe = replace(prunus.methods.l1_filter, granularity=Channel(round_to=8), allocate=allocation)
    model = Small()

    def counted(m: nn.Module) -> int:
        if currency == "bytes":
            return sum(t.numel() * t.element_size() for t in m.state_dict().values())
        return measure.macs(m, (IMAGE,)).total if currency == "macs" else measure.params(m).total

    least = 1.0
    for share in (0.7, 0.45, 0.1):
        try:
            result = prunus.prune(model, Task(example=(IMAGE,)), recipe, budget=Budget(**{currency: share}))
        except BudgetError as error:
            least = float(str(error).split("at its minimum ")[1].split(" is left")[0])
            assert least > share
            continue
        assert counted(result.compact()) <= share * counted(model)
        for name, mask in result.unit_masks.items():
            kept = int(mask.sum())
            assert kept == mask.numel() if mask.numel() < 8 else kept in (8, 16, 24, mask.numel()), name
    assert least < 0.45  # the smallest share was the only one out of reach


@pytest.mark.parametrize("currency", ["density", "params", "macs", "bytes"])
def test_exclude_minimum_and_multiple_hold_together(currency: str) -> None:
    """In every currency: what is excluded stays whole, and the rest keeps at least three blocks of four."""
    granularity = Channel(exclude=("norm.*", "narrow.bias"), at_least=9, round_to=4)
    recipe = replace(prunus.methods.l1_filter, granularity=granularity, allocate=GlobalRanking(normalize="mean"))
    result = prunus.prune(Small(), Task(example=(IMAGE,)), recipe, budget=Budget(**{currency: 0.75}))
    small = result.compact()
    counts = {n: int(m.sum()) for n, m in result.unit_masks.items()}
    assert list(counts) == ["stem"] and counts["stem"] in (12, 16, 20)
    assert (small.inner.out_channels, small.narrow.out_channels) == (20, 4)
    with pytest.raises(BudgetError):
        prunus.prune(Small(), Task(example=(IMAGE,)), recipe, budget=Budget(params=0.4))


# Bytes


class Mixed(nn.Module):
    """Half of it in bfloat16, tied weights, buffers that are saved and buffers that are not."""

    table: Tensor
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 32).bfloat16()
        self.norm, self.head, self.tied = nn.BatchNorm1d(32), nn.Linear(32, 3), nn.Linear(32, 3)
        self.tied.weight = self.head.weight
        self.register_buffer("table", torch.randn(32, dtype=torch.float64))
        self.register_buffer("cache", torch.randn(32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x).relu()) * self.cache
        x = self.second(x.bfloat16()).float().relu() * self.table.float()
        return self.head(x) + self.tied(x)


def stored(model: nn.Module) -> int:
    """Bytes of the state, shared tensors once, counted from what is there."""
    state = model.state_dict(keep_vars=True)
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in state.values()}.values())


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_bytes_count_every_tensor_by_its_own_type(share: float) -> None:
    model, recipe = Mixed(), prunus.methods.l1_filter
    task = Task(example=(torch.randn(4, 6),))
    result = prunus.prune(model, task, recipe, budget=Budget(bytes=share))
    cost = cost_of(result.model, task, "bytes")
    assert isinstance(cost, Cost) and cost.dense == stored(model)
    small = result.compact()
    assert stored(small) <= share * stored(model)
    assert cost.fraction(result.groups, result.unit_masks) * cost.dense == pytest.approx(stored(small))
    assert {"table", "first.weight", "second.weight"} <= {m.param for g in result.groups for m in g.members}
    # One unit more of the same ranking would break the ceiling.
    kept, units = (sum(int(f(m)) for m in result.unit_masks.values()) for f in (torch.sum, torch.numel))
    more = prunus.prune(model, task, recipe, budget=Budget(density=(kept + 1) / units))
    assert stored(more.compact()) > share * stored(model)


@pytest.mark.parametrize("name", ["magnitude", "snip"])
@pytest.mark.parametrize(("currency", "word"), [("bytes", "stored"), ("latency", "multiplied")])
def test_single_weights_save_no_bytes_and_no_time(name: str, currency: Currency, word: str) -> None:
    model = Small()
    before = {n: p.clone() for n, p in model.named_parameters()}
    batch = (IMAGE, torch.tensor([0, 1]))
    task = Task(loss=lambda m, b: m(b[0]).square().sum(), train=[batch], example=(IMAGE,), clock=never)
    with pytest.raises(BudgetError, match=f"zeros are {word} like any other number.*structured"):
        prunus.prune(model, task, name, budget=Budget(**{currency: 0.5}))
    with pytest.raises(BudgetError, match=word):  # before training, whatever the schedule
        prunus.Session(model, "gradual_magnitude", task, Budget(**{currency: 0.5}), steps=100)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def never(*_: Any) -> Any:
    raise AssertionError("nothing is to be timed here")
