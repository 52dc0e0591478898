"""What a network would take if layers were narrower, without making it: its layers' tables, and the measured rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prunus.core.errors import StructureError
from prunus.core.groups import Group, shapes_left
from prunus.graph import compact
from prunus.measure.beside import beside
from prunus.measure.inputs import Example, device_of
from prunus.measure.layers import LayerCall, LayerShape, layers
from prunus.measure.tables import LatencyTables, Progress, Table
from prunus.measure.timing import compare, latency

TRUST = 0.2  # in tables and weights beside measured networks
CORNERS = tuple(np.array(c) for c in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)))
SMALLER = (0.5, 0.25)  # networks that are made and timed: of every group so much is left
Samples = Callable[[Mapping[str, nn.Module], Example], Mapping[str, Sequence[float]]]
"""Networks by name, and what each is given -> milliseconds of every run of each, in turns."""
Left = Mapping[str, Sequence[int]]
"""Parameter -> the shape that is left of it; parameters that are whole may be missing."""


@dataclass(frozen=True)
class LayerPrices:
    """Milliseconds of a network as a function of what is left of its parameters.

    T(left) = scale * sum of the layers' tables + per_number * sum of weight * numbers that layers put out + fixed.

    Attributes:
        calls: every use of a weight in a run.
        tables: the layers' tables, by shape.
        dense_ms: the whole network, measured: the fastest of its runs, as in the tables.
        scale: 1, or less where the layers alone are said to take longer than the network.
        weights: what normalization, activations and other work on a call's output take for each number of it, as far
            as that was timed (`beside`); left out, every number takes as much.
        per_number: what these weights are multiplied with, so that the sum is the network's time.
        fixed: what no width changes.
    """

    calls: tuple[LayerCall, ...]
    tables: Mapping[LayerShape, Table]
    weights: tuple[float, ...] = ()
    dense_ms: float = 0.0
    scale: float = 1.0
    per_number: float = 0.0
    fixed: float = 0.0

    @cached_property
    def _by_param(self) -> dict[str, tuple[tuple[LayerCall, float], ...]]:
        found: dict[str, tuple[tuple[LayerCall, float], ...]] = {}
        for call, weight in self._weighted:
            found[call.param] = (*found.get(call.param, ()), (call, weight))
        return found

    @property
    def _weighted(self) -> tuple[tuple[LayerCall, float], ...]:
        return tuple(zip(self.calls, self.weights or (1.0,) * len(self.calls), strict=True))

    def parts(self, left: Left, of: Sequence[str] | None = None) -> tuple[float, float]:
        """Milliseconds of the layers by their tables, and the weighted numbers that they put out; `of`: these weights
        alone.
        """
        calls = self._weighted if of is None else chain.from_iterable(self._by_param.get(n, ()) for n in of)
        took = numbers = 0.0
        for call, weight in calls:
            shape = call.shape if call.param not in left else call.narrowed(left[call.param])
            if shape is not None:
                took += self.tables[call.shape].time(shape.inputs, shape.outputs)
                numbers += weight * shape.outputs * shape.positions
        return took, numbers

    def ms(self, left: Left, of: Sequence[str] | None = None) -> float:
        """Milliseconds of the network; of these weights alone, without what is fixed, where they are named."""
        took, numbers = self.parts(left, of)
        return self.scale * took + self.per_number * numbers + (self.fixed if of is None else 0.0)

    def share(self, left: Left) -> float:
        """What is left of the dense network's time, as predicted."""
        return self.ms(left) / self.ms({})

    def calibrated(self, dense_ms: float, smaller: Sequence[tuple[float, Left]] = ()) -> LayerPrices:
        """The same, fitted to the measured time of the network and of smaller ones, each with what is left of it.

        The network's own time is met exactly, the others in least squares of the shares; where these say little, tables
        and weights are taken at their word. With the first alone, all that they do not tell is taken to be fixed.
        """
        took, numbers = self.parts({})
        # As shares of the network's time: of the tables u, of weighted numbers v, fixed 1 - u - v. None is negative.
        trusted = np.array([took, numbers if self.weights else 0.0]) / dense_ms
        trust = np.array([TRUST, TRUST if self.weights else 1e-6])
        rows, wanted = [np.diag(trust)], [trust * trusted]
        for ms, left in smaller:
            t, n = self.parts(left)
            fewer = [1 - t / took if took else 0.0, 1 - n / numbers if numbers else 0.0]
            rows.append(-np.array([fewer]) * dense_ms / ms)
            wanted.append(np.array([1 - dense_ms / ms]))
        u, v = within(np.concatenate(rows), np.concatenate(wanted))
        scale, factor = (part * dense_ms / of if of else 0.0 for part, of in ((u, took), (v, numbers)))
        return replace(self, dense_ms=dense_ms, scale=scale, per_number=factor, fixed=(1 - u - v) * dense_ms)


def within(rows: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, float]:
    """The least squares of `rows @ (u, v) - wanted` with u >= 0, v >= 0, u + v <= 1."""
    found = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    tried = [found] if found.min() >= 0 and found.sum() <= 1 else []
    for start, end in pairwise(CORNERS):
        way = rows @ (end - start)
        along = float(way @ (wanted - rows @ start) / max(float(way @ way), 1e-300))
        tried.append(start + min(max(along, 0.0), 1.0) * (end - start))
    u, v = min(tried, key=lambda x: float(((rows @ x - wanted) ** 2).sum()))
    return float(u), float(v)


def prices(
    model: nn.Module,
    example: Example,
    groups: Sequence[Group] = (),
    *,
    tables: LatencyTables | None = None,
    progress: Progress | None = None,
    timed: Samples | None = None,
) -> LayerPrices:
    """What `model` takes on `example` at every width, from this machine's tables.

    Args:
        model: it is left as it was.
        example: what a run is given, batch included.
        groups: what may be removed. Networks with a half and a quarter of the units of every group are made and timed,
            which tells how much of the time hangs on widths; without groups, or where they cannot be made, what tables
            and `beside` do not tell is fixed.
        tables: those of `LatencyTables()` for the model's device unless given.
        progress: see `LatencyTables.fill`.
        timed: what runs networks in the tables' runtime; PyTorch eager unless given.

    Cost: what `LatencyTables.fill` says for shapes that this machine has not timed yet; 60 runs of the model and 50 of
    each of the smaller ones. Errors: those of `layers` and of `LatencyTables`.
    """
    tables = LatencyTables(device=str(device_of(model, example))) if tables is None else tables
    calls = layers(model, example)
    shapes = dict.fromkeys(c.shape for c in calls)
    tables.fill(shapes, progress)
    weights = beside(model, example, calls, threads=tables.threads) if timed is None else ()
    found = LayerPrices(calls, {s: tables[s] for s in shapes}, weights)
    networks, left = {"dense": model}, dict[str, Left]()
    whole = {n: tuple(p.shape) for n, p in model.named_parameters()}
    for share in SMALLER:
        masks = {g.name: evenly(g, max(int(share * g.units), g.at_least)) for g in groups if g.units > 1 and g.movable}
        try:
            if masks:
                networks[f"{share}"] = compact(model, groups, masks, verify=False)[0]
                left[f"{share}"] = shapes_left(whole, groups, masks)
        except StructureError:
            continue
    took = timed(networks, example) if timed is not None else _eager(networks, example, tables.threads)
    least = {n: min(samples) for n, samples in took.items()}
    return found.calibrated(least["dense"], [(least[n], left[n]) for n in left])


def _eager(networks: Mapping[str, nn.Module], example: Example, threads: int) -> dict[str, Sequence[float]]:
    """Milliseconds of every run of each network in PyTorch."""
    if len(networks) == 1:
        return {n: latency(m, example, threads=threads).samples_ms for n, m in networks.items()}
    found = compare(networks, example, threads=threads).latency
    return {n: t.samples_ms for n, t in found.items()}


def evenly(group: Group, count: int) -> torch.Tensor:
    """The first units of each of the group's equal parts, at most `count` of them in all and at least one of each."""
    each = group.units // group.parts
    kept = torch.arange(each) < max(1, count // group.parts)
    return kept.repeat(group.parts).reshape(group.shape)
