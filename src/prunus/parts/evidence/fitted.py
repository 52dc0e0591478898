"""What the whole model costs by how many units each group keeps, fitted to measurements of smaller models."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import GroupTensors, Sources
from prunus.core.groups import Group
from prunus.parts.evidence.cost import CONSTANT, CountCostEvidence
from prunus.parts.evidence.mode import averaged_over_ranks


@dataclass(frozen=True)
class FittedCostEvidence(CountCostEvidence):
    """The bilinear model of a measured cost (Yang, Zhu & Liu 2019, CVPR, arXiv:1812.01803, section 3.1), as a share of
    the dense model's: the polynomial of `CountCostEvidence` with the products that the exact number of parameters has,
    its coefficients fitted by least squares with a small ridge.

    Measured are `samples` models of random widths that were physically made smaller, each by the task's clock
    (`Task.clock`; on this machine, in time, otherwise): a clock that reads an energy meter makes it energy. Counts of a
    group are even over its parts and multiples of what it asks for. On several processes the coefficients are averaged.
    Cost: a copy of the model and a timing per sample. Differs: the paper takes ten thousand samples.
    """

    samples: int = 100
    ridge: float = 1e-3
    passes: ClassVar[str] = "one timing per sample"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        (exact,) = CountCostEvidence("params").collect(sources)
        names = [g.name for g in sources.groups]
        rows = torch.stack([exact[n].cpu() for n in names])
        linear, square = rows[:, 0] != 0, torch.triu((rows[:, 1:] != 0) | (rows[:, 1:].T != 0))
        counts, costs = measured(sources, self.samples)
        whole = torch.tensor([float(g.units) for g in sources.groups], dtype=torch.float64)
        share = counts / whole
        left, right = square.nonzero().unbind(1)
        x = torch.cat([torch.ones(len(share), 1).double(), share[:, linear], share[:, left] * share[:, right]], dim=1)
        found = torch.linalg.solve(x.T @ x + self.ridge / 2 * torch.eye(x.shape[1]).double(), x.T @ costs)
        table = torch.zeros(len(names), 1 + len(names), dtype=torch.float64)
        table[linear, 0] = found[1 : 1 + int(linear.sum())] / whole[linear]
        table[left, 1 + right] = found[1 + int(linear.sum()) :] / (whole[left] * whole[right])
        told = {n: table[i] for i, n in enumerate(names)} | {CONSTANT: found[:1]}
        yield averaged_over_ranks(told)


def measured(sources: Sources, samples: int) -> tuple[Float[Tensor, "samples groups"], Float[Tensor, "samples"]]:
    """Random counts, and what models with as many units cost.

    Errors: `SpecError` without an input to run.
    """
    from prunus import default_clock
    from prunus.graph import compact

    call = sources.task.example_inputs()
    if call is None:
        raise SpecError("what a model costs is measured on an input: pass Task(example=...)")
    clock: Any = sources.task.clock or default_clock()
    counts, costs = [], []
    for _ in range(samples):
        masks = {g.name: drawn(g, sources.generator) for g in sources.groups}
        small, _ = compact(sources.model, sources.groups, masks, verify=False)
        counts.append([float(m.sum()) for m in masks.values()])
        costs.append(float(clock(sources.model, small, call[1] or call[0]).share))
    return torch.tensor(counts, dtype=torch.float64), torch.tensor(costs, dtype=torch.float64)


def drawn(group: Group, generator: torch.Generator) -> Bool[Tensor, "*units"]:
    """The first units of every part, a random number of them that the group allows."""
    size, each = group.units // group.parts, max(1, group.multiple // group.parts)
    least = max(1, -(-max(group.at_least, 1) // (each * group.parts)))
    most = size // each
    count = each * int(torch.randint(min(least, most), most + 1, (1,), generator=generator))
    keep: Tensor = torch.arange(size) < count
    return keep.repeat(group.parts).reshape(group.shape)
