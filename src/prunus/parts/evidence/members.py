"""What the loss says of every slice of a coupled unit: one number for each weight matrix that the unit lies in."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.parts.evidence.gradients import NO_BATCH, scored
from prunus.parts.evidence.mode import averaged_over_ranks, batch_gradients, evidence_mode


class MemberTaylorEvidence(Evidence):
    """By how much the loss is expected to change without a unit's slice of each weight that makes or reads it.

    g: the gradient, averaged over batches; h: the mean over batches of its square, the diagonal of the empirical Fisher
    matrix if a batch is one sample. By the asking part's `order`: `vector` |sum w g|, `first` sum |w g|, `second`
    sum w^2 h, `mixed` sum |w g - w^2 h / 2|; sums over the entries of the slice. Cost: one forward and backward per
    batch, two gradients in memory.
    """

    reads: ClassVar[Reads] = "labels"
    roles = ("out", "in")
    passes = "one forward and backward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = scored(sources, self.roles)
        total: dict[str, Tensor] = {}
        squares: dict[str, Tensor] = {}
        batches = 0
        with evidence_mode(sources.model, names, sources.generator):
            for found in batch_gradients(sources.model, sources.task, sources.task.calibration(), names):
                wide = {n: g.double() for n, g in found.items()}
                total = {n: total.get(n, 0) + g for n, g in wide.items()}
                squares = {n: squares.get(n, 0) + g.square() for n, g in wide.items()}
                batches += 1
        if not batches:
            raise DataError(NO_BATCH)
        g = averaged_over_ranks({n: t / batches for n, t in total.items()})
        h = averaged_over_ranks({n: t / batches for n, t in squares.items()})
        order = str(sources.settings.get("order", "first"))
        entries = {n: entry(p.detach().double(), g[n], h[n], order) for n, p in names.items()}
        laid: dict[str, Tensor] = {}
        for group in sources.groups:
            members = [m for m in group.with_role(*self.roles) if m.param in entries]
            if members and not group.elementwise:
                sums = [group.view(m, entries[m.param]).sum(-1) for m in members]
                laid[group.name] = torch.stack(sums, -1).abs()
        yield laid


def entry(
    w: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], h: Float[Tensor, "*shape"], order: str
) -> Float[Tensor, "*shape"]:
    """What a single weight adds to the importance of its slice."""
    if order == "vector":
        return w * g
    if order == "second":
        return w.square() * h
    return (w * g).abs() if order == "first" else (w * g - w.square() * h / 2).abs()


MemberTaylor = Annotated[Float[Tensor, "*units members"], MemberTaylorEvidence()]
"""`[*units, members]`: the expected change of the loss without the unit's slice of each of its weights."""
