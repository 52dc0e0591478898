"""What layers cost in time: by this machine's tables, or the model with one layer made narrower run by a clock."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.budget import Prices
from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Group, shapes_left


@dataclass(frozen=True)
class LayerLatencyEvidence(Evidence):
    """`[units + 1]`: the latency of the model where this group alone keeps c units, as a share of the dense model's,
    less what is left with the fewest; never falling with c. Float64.

    On this machine's own clock, read off the tables of its layers (`prunus.measure.prices`), other groups as their
    masks leave them. With a clock of the task's own (`Task.clock`), measured for every `step` units on models that were
    physically made smaller, other groups whole. Between two of `step` units, the larger one counts (a staircase).
    Repeatable as far as the clock is. Cost: what layers that no table has yet take to measure; with a clock of one's
    own units / step timings per group, each with a copy of the model.
    """

    step: int = 8
    passes: ClassVar[str] = "tables of layers, or one timing per group and step"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        from prunus import layer_prices

        call = sources.task.example_inputs()
        if call is None:
            raise SpecError("latency needs an input to time: pass Task(example=...)")
        example, clock = call[1] or call[0], sources.task.clock
        if sources.prices is not None:
            prices = sources.prices()
        else:
            prices = layer_prices(sources.model, example, clock, sources.groups)
        if prices is None:
            yield self.timed(sources, example)
            return
        shapes = {n: tuple(p.shape) for n, p in sources.parameters.items()}
        left, dense = shapes_left(shapes, sources.groups, sources.masks), prices.ms({})
        yield {g.name: self.priced(g, prices, left, shapes, sources.masks) / dense for g in sources.groups}

    def priced(
        self,
        group: Group,
        prices: Prices,
        left: dict[str, tuple[int, ...]],
        shapes: dict[str, tuple[int, ...]],
        masks: GroupTensors,
    ) -> Float[Tensor, "counts"]:
        """`[units + 1]`: milliseconds, by tables, of the weights that the group's units lie in."""
        took = torch.zeros(group.units + 1, dtype=torch.float64)
        own = [m.param for m in group.members if m.param in shapes]
        # Without this group's mask: what other groups leave of the weights that it shares with them.
        now = shapes_left(shapes, (group,), masks)
        for high in range(group.units, -1, -self.step):
            keep = torch.arange(group.units).reshape(group.shape) < high
            then = shapes_left(shapes, (group,), {group.name: keep})
            narrow = {n: _swapped(left.get(n, shapes[n]), now.get(n, shapes[n]), then.get(n, shapes[n])) for n in own}
            took[: high + 1] = prices.ms(left | narrow, of=list(dict.fromkeys(own)))
        rising = took.cummax(0).values
        return rising - rising[0]

    def timed(self, sources: Sources, example: object) -> GroupTensors:
        """The shares of all groups, measured with the task's clock."""
        from prunus import default_clock
        from prunus.graph import compact

        clock = sources.task.clock or default_clock()
        tables: dict[str, Tensor] = {}
        for group in sources.groups:
            shares = torch.ones(group.units + 1, dtype=torch.float64)
            for high in range(group.units, 0, -self.step):
                if high < group.units:
                    keep = (torch.arange(group.units) < high).reshape(group.shape)
                    small, _ = compact(sources.model, (group,), {group.name: keep}, verify=False)
                    shares[: high + 1] = float(clock(sources.model, small, example).share)
            rising = shares.cummax(0).values
            tables[group.name] = rising - rising[0]
        return tables


def _swapped(left: tuple[int, ...], now: tuple[int, ...], then: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that all groups leave, with what one of them takes now given back and what it takes then taken."""
    return tuple(max(a + t - n, 0) for a, n, t in zip(left, now, then, strict=True))
