"""How large the gradients of weights are over the calibration batches: of the loss, or of a block's own output."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError, SpecError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Group, Member
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.inputs import floating_outputs
from prunus.parts.evidence.mode import averaged_over_ranks, evidence_mode


def readers(group: Group) -> tuple[Member, ...]:
    """The weights that read a group's units; a single weight is its own (as `ReaderWeight` lays them out)."""
    return group.members[:1] if not group.movable else tuple(m for m in group.with_role("in") if m.unit is None)


class GradLengthEvidence(Evidence):
    """(mean over batches of |dL/dw|^norm)^(1/norm) of each weight that reads a unit, laid out as `ReaderWeight`.

    `norm` is the asking part's, 2 if it has none. A batch counts as one sample. Cost: one forward and backward per
    batch, two gradients in memory.
    """

    reads: ClassVar[Reads] = "labels"
    passes = "one forward and backward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        members = {g.name: (g, read) for g in sources.groups if (read := readers(g))}
        names = {m.param: sources.parameters[m.param] for _, read in members.values() for m in read}
        norm = float(sources.settings.get("norm", 2))
        total = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in names.items()}
        batches = 0
        for batch in sources.task.calibration():
            batches += 1
            with evidence_mode(sources.model, names, sources.generator):
                for n, g in self.slopes(sources, batch, names).items():
                    total[n] += g.to(total[n].dtype).abs() ** norm
        if not batches:
            raise DataError(NO_BATCH)
        found = averaged_over_ranks({n: t / batches for n, t in total.items()})
        lengths = {n: t ** (1 / norm) for n, t in found.items()}
        yield {name: group.views(read, lengths) for name, (group, read) in members.items()}

    def slopes(self, sources: Sources, batch: object, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of a batch; of what it does not reach none."""
        loss = self.aim(sources, batch)
        if not loss.requires_grad:
            return {}
        found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        return {n: g for n, g in zip(names, found, strict=True) if g is not None}

    def aim(self, sources: Sources, batch: object) -> Float[Tensor, ""]:
        """What is differentiated."""
        return sources.task.loss_of(sources.model, batch)


class RegionalGradEvidence(GradLengthEvidence):
    """As `GradLengthEvidence`, of the Euclidean norm of what the model gives instead of the loss.

    The model is the block where a recipe goes through blocks, so nothing behind it is run. Its first floating output
    counts (a layer's hidden states). Cost: one forward and backward through it per batch.
    """

    reads: ClassVar[Literal["inputs"]] = "inputs"

    def aim(self, sources: Sources, batch: object) -> Float[Tensor, ""]:
        found = floating_outputs(sources.task.outputs(sources.model, batch))
        if not found:
            raise SpecError("the block gives no floating tensor whose norm could be differentiated: take sweep='model'")
        size: Tensor = found[0].to(torch.promote_types(found[0].dtype, torch.float32)).norm()
        return size


GradLength = Annotated[Float[Tensor, "*units k"], GradLengthEvidence()]
"""`[*units, k]`: how large dL/dw is over the batches, of the weights that multiply each unit's activation."""

RegionalGrad = Annotated[Float[Tensor, "*units k"], RegionalGradEvidence()]
"""`[*units, k]`: the same of the norm of the block's output, which takes neither loss nor labels."""
