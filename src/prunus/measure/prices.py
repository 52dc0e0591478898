"""What a network would take if layers were narrower, without making it: its layers' tables, and the measured rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import nn

from prunus.core.errors import StructureError
from prunus.core.groups import Group, shapes_left
from prunus.graph import compact
from prunus.measure.inputs import Example, device_of
from prunus.measure.layers import LayerCall, LayerShape, layers
from prunus.measure.tables import LatencyTables, Progress, Table
from prunus.measure.timing import compare, latency

Left = Mapping[str, Sequence[int]]
"""Parameter -> the shape that is left of it; parameters that are whole may be missing."""


@dataclass(frozen=True)
class LayerPrices:
    """Milliseconds of a network as a function of what is left of its parameters.

    T(left) = scale * sum of the layers' tables + per_number * numbers that layers put out + fixed.

    Attributes:
        calls: every use of a weight in a run.
        tables: the layers' tables, by shape.
        dense_ms: the whole network, measured: the fastest of its runs, as in the tables.
        scale: 1, or less where the layers alone are said to take longer than the network.
        per_number: what normalization, activations and other work on a layer's output take for each number of it.
        fixed: what no width changes.
    """

    calls: tuple[LayerCall, ...]
    tables: Mapping[LayerShape, Table]
    dense_ms: float = 0.0
    scale: float = 1.0
    per_number: float = 0.0
    fixed: float = 0.0

    @cached_property
    def _by_param(self) -> dict[str, tuple[LayerCall, ...]]:
        found: dict[str, tuple[LayerCall, ...]] = {}
        for call in self.calls:
            found[call.param] = (*found.get(call.param, ()), call)
        return found

    def parts(self, left: Left, of: Sequence[str] | None = None) -> tuple[float, float]:
        """Milliseconds of the layers by their tables, and the numbers that they put out; `of`: these weights alone."""
        calls = self.calls if of is None else chain.from_iterable(self._by_param.get(n, ()) for n in of)
        took = numbers = 0.0
        for call in calls:
            shape = call.shape if call.param not in left else call.narrowed(left[call.param])
            if shape is not None:
                took += self.tables[call.shape].time(shape.inputs, shape.outputs)
                numbers += shape.outputs * shape.positions
        return took, numbers

    def ms(self, left: Left, of: Sequence[str] | None = None) -> float:
        """Milliseconds of the network; of these weights alone, without what is fixed, where they are named."""
        took, numbers = self.parts(left, of)
        return self.scale * took + self.per_number * numbers + (self.fixed if of is None else 0.0)

    def share(self, left: Left) -> float:
        """What is left of the dense network's time, as predicted."""
        return self.ms(left) / self.ms({})

    def calibrated(self, dense_ms: float, small_ms: float | None = None, left: Left | None = None) -> LayerPrices:
        """The same, fitted to the measured time of the network and of one smaller one of which `left` is left.

        With the first alone, all that the tables do not tell is taken to be fixed.
        """
        took, numbers = self.parts({})
        if took >= dense_ms:
            return replace(self, dense_ms=dense_ms, scale=dense_ms / took)
        rest, each = dense_ms - took, 0.0
        if small_ms is not None and left is not None:
            small, fewer = self.parts(left)
            if numbers > fewer:
                each = min(max((rest - (small_ms - small)) / (numbers - fewer), 0.0), rest / numbers)
        return replace(self, dense_ms=dense_ms, scale=1.0, per_number=each, fixed=rest - each * numbers)


def prices(
    model: nn.Module,
    example: Example,
    groups: Sequence[Group] = (),
    *,
    tables: LatencyTables | None = None,
    progress: Progress | None = None,
) -> LayerPrices:
    """What `model` takes in PyTorch eager on `example` at every width, from this machine's tables.

    Args:
        model: it is left as it was.
        example: what a run is given, batch included.
        groups: what may be removed. One network with half of the units of every group is made and timed, which tells
            how much of the rest hangs on widths; without groups, or where it cannot be made, the rest is fixed.
        tables: those of `LatencyTables()` for the model's device unless given.
        progress: see `LatencyTables.fill`.

    Cost: what `LatencyTables.fill` says for shapes that this machine has not timed yet; 50 runs of the model and of
    the smaller one. Errors: those of `layers` and of `LatencyTables`.
    """
    tables = LatencyTables(device=str(device_of(model, example))) if tables is None else tables
    calls = layers(model, example)
    shapes = dict.fromkeys(c.shape for c in calls)
    tables.fill(shapes, progress)
    found = LayerPrices(calls, {s: tables[s] for s in shapes})
    masks = {g.name: evenly(g, max(g.units // 2, g.at_least)) for g in groups if g.units > 1 and g.movable}
    try:
        small = compact(model, groups, masks, verify=False)[0] if masks else None
    except StructureError:
        small = None
    if small is None:
        return found.calibrated(min(latency(model, example, threads=tables.threads).samples_ms))
    timed = compare({"dense": model, "small": small}, example, threads=tables.threads).latency
    left = shapes_left({n: tuple(p.shape) for n, p in model.named_parameters()}, groups, masks)
    return found.calibrated(min(timed["dense"].samples_ms), min(timed["small"].samples_ms), left)


def evenly(group: Group, count: int) -> torch.Tensor:
    """The first units of each of the group's equal parts, at most `count` of them in all and at least one of each."""
    each = group.units // group.parts
    kept = torch.arange(each) < max(1, count // group.parts)
    return kept.repeat(group.parts).reshape(group.shape)
