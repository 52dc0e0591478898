"""Where to cut: the layer whose units take the most time for their work goes first, down to its floor."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from torch import nn

from prunus.core.groups import shapes_left
from prunus.graph import compact
from prunus.measure import macs
from prunus.measure.cutting import counts_by_time
from prunus.measure.layers import layers
from prunus.measure.prices import LayerPrices, evenly
from prunus.measure.tables import Table
from prunus.parts.granularity import Channel


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(m for i in range(3) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))).eval()


def priced(model: nn.Module, slow: int) -> LayerPrices:
    """Every layer takes its work, one of them ten times as long."""
    calls = layers(model, torch.randn(1, 16, 8, 8))
    wide = (4, 8, 12, 16)
    tables = {}
    # Layers of one shape share a table: the slow one is told apart by its bias.
    calls = tuple(replace(c, shape=replace(c.shape, bias=i == slow)) for i, c in enumerate(calls))
    for i, c in enumerate(calls):
        ms = tuple(tuple((10.0 if i == slow else 1.0) * a * b for b in wide) for a in wide)
        tables[c.shape] = Table(4, wide, wide, ms, 7, 0.1)
    return LayerPrices(calls, tables)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.45])
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_the_work_that_takes_longest_goes_first(share: float, floor: float) -> None:
    model = net()
    groups = Channel(round_to=4)(model, (torch.randn(1, 16, 8, 8),))
    assert len(groups) == 2  # between three layers
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    found = counts_by_time(priced(model, slow=0), groups, shapes, share, floor)
    first, second = (found[g.name] for g in groups)
    assert first <= second and all(found[g.name] % 4 == 0 and found[g.name] >= 16 * floor for g in groups)
    masks = {g.name: evenly(g, found[g.name]) for g in groups}
    x = torch.randn(1, 16, 8, 8)
    small = compact(model, groups, masks, verify=False)[0]
    assert macs(small, x).total <= share * macs(model, x).total
    assert shapes_left(shapes, groups, masks)["0.weight"][0] == first


def test_what_cannot_be_met_ends_at_the_floor() -> None:
    model = net()
    groups = Channel(round_to=4)(model, (torch.randn(1, 16, 8, 8),))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert set(counts_by_time(priced(model, 1), groups, shapes, 0.01, 0.5).values()) == {8}
    assert set(counts_by_time(priced(model, 1), groups, shapes, 1.0).values()) == {16}


@pytest.mark.parametrize("share", [0.8, 0.6, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_no_exchange_of_one_step_does_more_in_a_millisecond(share: float, seed: int) -> None:
    """Against all widths of three groups, tried one by one."""
    torch.manual_seed(seed)
    widths = (4, 8, 12, 16)
    model = nn.Sequential(*(m for i in range(4) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))).eval()
    example = torch.randn(1, 16, 8, 8)
    calls = tuple(replace(c, shape=replace(c.shape, bias=bool(i % 2))) for i, c in enumerate(layers(model, example)))
    tables = {}
    for c in calls:
        drawn = torch.rand(4, 4).add(0.1).cumsum(0).cumsum(1)  # more never takes less
        tables[c.shape] = Table(4, widths, widths, tuple(tuple(row.tolist()) for row in drawn), 7, 0.1)
    priced = LayerPrices(calls, tables)
    groups = Channel(round_to=4)(model, (example,))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    whole = sum(c.shape.macs for c in calls)

    def cost(counts: dict[str, int]) -> tuple[float, float]:
        left = shapes_left(shapes, groups, {g.name: evenly(g, counts[g.name]) for g in groups})
        macs = sum(c.narrowed(left.get(c.param, shapes[c.param])).macs for c in calls)  # type: ignore[union-attr]
        return priced.ms(left), macs / whole

    found = counts_by_time(priced, groups, shapes, share)
    ms, macs = cost(found)
    assert macs <= share
    every = [dict(zip(found, counts, strict=True)) for counts in product(widths, repeat=len(groups))]
    rates = {tuple(c.values()): m / t for c in every for t, m in [cost(c)] if m <= share}
    for more, less in permutations(found, 2):
        paid = found[less] - 4
        while paid >= 4:  # as few steps as it takes
            other = tuple((found | {more: found[more] + 4, less: paid}).values())
            if other in rates:
                assert rates[other] <= macs / ms * (1 + 1e-6)
                break
            paid -= 4
    assert macs / ms <= max(rates.values()) * (1 + 1e-9)


def test_a_network_without_tables_is_left_as_it_is() -> None:
    model = net()
    groups = Channel(round_to=4)(model, (torch.randn(1, 16, 8, 8),))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert set(counts_by_time(LayerPrices((), {}), groups, shapes, 0.5).values()) == {16}
