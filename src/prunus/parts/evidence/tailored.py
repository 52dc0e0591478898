"""Scales on units that are learned while the weights stand still."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError, SpecError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group, Member
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import averaged_over_ranks, batch_gradients, evidence_mode


class LearnedScaleEvidence(Evidence):
    """A factor on each unit, trained with gradient descent from 1 with all weights fixed, and dL/dfactor where it ends.

    The factor multiplies every weight that reads the unit, which is what a gate on the unit does. `rounds` steps of SGD
    with learning rate `rate` (settings of the asking part), batches in turn; the gradient is then averaged over all of
    them. Weights are put back bit by bit, also after an exception. Undefined where nothing reads a unit. Cost: one
    forward and backward per round and, at the end, per batch; a copy of the readers' weights.
    """

    roles = ("in",)
    reads: ClassVar[Reads] = "labels"
    passes = "a short training of the factors, then one forward and backward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        groups = {g.name: (g, read) for g in sources.groups if (read := _readers(g))}
        names = {m.param: sources.parameters[m.param] for _, read in groups.values() for m in read}
        whole = {n: p.detach().clone() for n, p in names.items()}
        factors = {
            n: torch.ones(g.units, dtype=torch.promote_types(whole[read[0].param].dtype, torch.float32))
            for n, (g, read) in groups.items()
        }
        factors = {n: f.to(whole[groups[n][1][0].param].device) for n, f in factors.items()}
        batches: Sequence[Any] = list(sources.task.calibration())
        if not batches:
            raise DataError(NO_BATCH)
        rounds, rate = int(sources.settings.get("rounds", 0)), float(sources.settings.get("rate", 0.0))

        def slopes(some: Sequence[Any]) -> dict[str, Tensor]:
            _scale(groups, factors, whole, names)
            total = {n: torch.zeros_like(f) for n, f in factors.items()}
            with evidence_mode(sources.model, names, sources.generator):
                for gradient in batch_gradients(sources.model, sources.task, some, names):
                    for n, (g, read) in groups.items():
                        slices = g.views(read, {m.param: gradient[m.param] * whole[m.param] for m in read})
                        total[n] += slices.sum(-1) / len(some)
            return averaged_over_ranks(total)

        try:
            for batch in islice(cycle(batches), rounds):
                step = slopes([batch])
                factors = {n: f - rate * step[n] for n, f in factors.items()}
            last = slopes(batches)
        finally:
            with torch.no_grad():
                for n, p in names.items():
                    p.copy_(whole[n])
        if bad := [n for n, f in factors.items() if not torch.isfinite(f).all()]:
            raise SpecError(f"the factors of {bad[0]} are not finite after {rounds} rounds: lower the rate ({rate})")
        yield {n: torch.stack([f, last[n]], -1) for n, f in factors.items()}


def _readers(group: Group) -> list[Member]:
    return [m for m in group.with_role("in") if m.dim is not None and m.unit is None and m.tile is None]


@torch.no_grad()
def _scale(
    groups: dict[str, tuple[Group, list[Member]]],
    factors: dict[str, Tensor],
    whole: dict[str, Tensor],
    names: dict[str, torch.nn.Parameter],
) -> None:
    """Set every reader to its own weights times the factors of the units that its columns read."""
    axes: dict[tuple[str, int], Tensor] = {}
    for name, (group, read) in groups.items():
        for m in read:
            assert m.dim is not None
            size = whole[m.param].shape[m.dim]
            axis = axes.setdefault((m.param, m.dim), torch.ones(size, dtype=factors[name].dtype).to(factors[name]))
            index = m.positions(group.units).to(axis.device)
            axis[index.reshape(-1)] *= factors[name].repeat_interleave(index.shape[1])
    scaled = dict(whole)
    for (param, dim), axis in axes.items():
        lying = [1] * scaled[param].ndim
        lying[dim] = -1
        scaled[param] = scaled[param] * axis.reshape(lying)
    for param, weight in scaled.items():
        names[param].copy_(weight)


LearnedScale = Annotated[Float[Tensor, "units 2"], LearnedScaleEvidence()]
"""`[units, 2]`: a learned factor on each unit, and the gradient of the loss with respect to it:
`scale, slope = pair.unbind(-1)`.
"""
