"""What layers cost in time, measured: the model with one layer made narrower, run in turn with the dense one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence, GroupTensors, Sources


@dataclass(frozen=True)
class LayerLatencyEvidence(Evidence):
    """`[units + 1]`: the latency of the model where this group alone keeps c units, as a share of the dense model's,
    less what is left with the fewest; never falling with c. Float64.

    Measured for every `step` units by the task's clock (`Task.clock`, on this machine otherwise) on models that were
    physically made smaller; between two measurements, the larger one (a staircase). Repeatable as far as the clock
    is. Cost: units / step timings per group, each with a copy of the model.
    """

    step: int = 8
    passes: ClassVar[str] = "one timing per group and step"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        from prunus import default_clock
        from prunus.graph import compact

        call = sources.task.example_inputs()
        if call is None:
            raise SpecError("latency needs an input to time: pass Task(example=...)")
        example, clock = call[1] or call[0], sources.task.clock or default_clock()
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
        yield tables
