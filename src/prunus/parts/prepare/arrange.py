"""Channels in another order, together with everything that makes and reads them."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunus.core.arrangement import arranged
from prunus.core.errors import SpecError, StructureError
from prunus.core.evidence import Sources
from prunus.core.groups import Group
from prunus.core.part import Preparation
from prunus.core.task import Task
from prunus.graph.duplicate import duplicate
from prunus.graph.running import call, mapped, one_sample, tensors_in
from prunus.graph.structure import CoupledGroup, trace
from prunus.parts.evidence.capture import captured
from prunus.parts.evidence.curvature import square

TOLERANCE = 1e-5
"""Of the largest output: norms of many models compute in float32 whatever they are given, and add in another order."""


@dataclass(frozen=True)
class Arranged(Preparation):
    """Channels are put into an order, for good, in which the n best of every m consecutive inputs of what reads them
    hold more of the score (channel permutation of RIA: Zhang et al. 2024, Plug-and-Play, ICLR, section 3.3).

    Everything coupled moves together (rows that make a channel, norms, biases, columns that read it), so outputs stay
    the same but for the order of sums, and nothing is gathered at run time. What can be moved: groups of the dependency
    graph whose channels are the inputs of linear maps one by one (hidden neurons of an MLP, residual streams), where
    the model computes the same afterwards, which is tried in float64 on a copy, group by group; others stay (heads,
    whose channels belong together). Readers share one order. Score: (|w| / sum of its column + |w| / sum of its row)
    ||x||^power, of all readers, on the calibration data (the example where there is no task).

    Cost: tracing; a forward per batch; a float64 copy and a forward on one sample per group; out * in^2 / m comparisons
    and m assignments per group. Fails: `SpecError` without an example, `StructureError` where nothing can be moved,
    `MissingExtraError` without scipy; nothing was changed. Differs: in the paper every layer has an order of its own,
    and inputs behind a residual stream are gathered at run time; `Permuted` tells what that would keep.
    """

    n: int = 2
    m: int = 4
    power: float = 0.5
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "inputs"

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise SpecError(f"{self}: n of every m weights are to stay, so 0 < n < m")

    def __call__(self, model: nn.Module, example: Any = None, task: Any = None) -> nn.Module:
        if example is None:
            raise SpecError("what is coupled is found by a run: pass Task(example=...) or batches")
        groups = [g for g in trace(model, example).groups if movable(g, model, self.m)]
        sample = mapped(one_sample(example)[0], lambda t: t.double() if t.is_floating_point() else t)
        trial = duplicate(model).double().eval()
        moved = 0
        lengths = norms(model, groups, task if task is not None else Task(calib=[example], forward=call))
        for group in groups:
            parameters = dict(model.named_parameters())
            order = arranged(worth(group, parameters, lengths, self.power), self.n, self.m).cpu()
            before = _outputs(trial, sample)
            move_(trial, group, order)
            if not _close(before, _outputs(trial, sample)):
                move_(trial, group, order.argsort())
                continue
            move_(model, group, order)
            moved += 1
        if not moved:
            raise StructureError(
                f"no channels of {type(model).__name__} can change places: prunus.groups(model, example) says which "
                f"there are, and {type(self).__name__} moves those that linear maps read one by one"
            )
        return model


def movable(group: Group, model: nn.Module, m: int) -> bool:
    """Whether its units are, one by one, all the inputs of linear maps, and whole blocks of m."""
    readers, parameters = group.with_role("in"), dict(model.named_parameters())
    own = (s for s in group.members if s.unit is not None or s.tile is not None or s.dim is None)
    if next(own, None) is not None or group.parts > 1 or group.units % m or not readers:
        return False
    if isinstance(group, CoupledGroup) and group.sizes:
        return False
    first = torch.arange(group.units).unsqueeze(1)
    return all(
        parameters[r.param].ndim == 2
        and r.dim == 1
        and parameters[r.param].shape[1] == group.units
        and torch.equal(r.positions(group.units), first)
        for r in readers
    )


def worth(
    group: Group, parameters: dict[str, nn.Parameter], lengths: dict[str, Float[Tensor, "_"]], power: float
) -> Float[Tensor, "out in"]:
    """The scores of all weights that read the group, below each other."""
    found = []
    for m in group.with_role("in"):
        size = parameters[m.param].detach().double().abs()
        least = torch.finfo(torch.float64).tiny
        share = size / size.sum(0).clamp(min=least) + size / size.sum(1, keepdim=True).clamp(min=least)
        found.append(share * lengths.get(m.param, torch.ones(1).to(size)) ** power)
    return torch.cat(found)


def norms(model: nn.Module, groups: list[Group], task: Task) -> dict[str, Float[Tensor, "_"]]:
    """The root mean squares of the inputs of everything that reads the groups, by parameter name."""
    parameters = dict(model.named_parameters())
    names = dict.fromkeys(m.param for g in groups for m in g.with_role("in"))
    sources = Sources(model, task, tuple(groups), parameters, torch.Generator().manual_seed(0))
    total: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    for uses in captured(sources, names) if names else ():
        for use in (u for ones in uses.values() for u in ones if u.in_axis == 1 and u.groups == 1):
            x = use.columns()[0]
            total[use.name] = total.get(use.name, torch.zeros((), dtype=torch.float64, device=x.device)) + square(x)
            rows[use.name] = rows.get(use.name, 0) + len(x)
    return {n: (t / rows[n]).sqrt() for n, t in total.items()}


@torch.no_grad()
def move_(model: nn.Module, group: Group, order: Int[Tensor, "units"]) -> None:
    """Put the unit `order[k]` into place k, in every parameter and buffer."""
    for member in group.members:
        tensor = model.get_buffer(member.param) if member.buffer else model.get_parameter(member.param)
        assert member.dim is not None
        places = member.positions(group.units).to(tensor.device)
        there = tensor.index_select(member.dim, places[order.to(tensor.device)].reshape(-1))
        tensor.index_copy_(member.dim, places.reshape(-1), there)


@torch.no_grad()
def _outputs(model: nn.Module, sample: Any) -> list[Tensor]:
    return [t for t in tensors_in(call(model, sample)) if t.is_floating_point()]


def _close(one: list[Tensor], other: list[Tensor]) -> bool:
    size = max((float(t.abs().max()) for t in one if t.numel()), default=0.0)
    return len(one) == len(other) and all(
        a.shape == b.shape and bool(((a - b).abs() <= TOLERANCE * max(size, 1e-30)).all())
        for a, b in zip(one, other, strict=True)
    )
