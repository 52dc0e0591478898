"""How much a unit matters, by several measures at once that are made comparable over the whole network."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.core.groups import Role
from prunus.parts.evidence.gradients import mean_gradient, scored

MEASURES = ("magnitude", "average", "cosine", "first", "second")


class SaliencesEvidence(Evidence):
    """Five measures of all that makes a unit, x, and of the loss's gradient there, g (HESSO: Chen et al. 2024,
    arXiv:2409.09085, and its code): ||x||, ||x|| / k of k entries, 1 + cos(x, g), |<x, g>| and <x, g>^2 / 2, each
    divided by its Euclidean norm over the units of all groups. Cost: one forward and backward per batch.
    """

    reads: ClassVar[Literal["labels"]] = "labels"
    roles: tuple[Role, ...] = ("out", "scale", "shift", "bias")  # type: ignore[misc]
    passes = "one forward and backward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        made = self.by_group(sources, {n: p.detach() for n, p in sources.parameters.items()})
        names = scored(sources, self.roles)
        there = mean_gradient(sources, names)
        slope = self.by_group(sources, {n: there.get(n, torch.zeros_like(p)) for n, p in names.items()})
        found = {n: measured(made[n].double(), g.double()) for n, g in slope.items()}
        whole = torch.stack([f.flatten(0, -2).square().sum(0) for f in found.values()]).sum(0).sqrt()
        tiny = torch.finfo(whole.dtype).tiny
        yield {n: f / whole.clamp(min=tiny) for n, f in found.items()}


def measured(x: Float[Tensor, "*units k"], g: Float[Tensor, "*units k"]) -> Float[Tensor, "*units measures"]:
    """The five, in the order of `MEASURES`."""
    size, along = torch.linalg.vector_norm(x, dim=-1), (x * g).sum(-1)
    both = size * torch.linalg.vector_norm(g, dim=-1)
    cosine = along / both.clamp(min=torch.finfo(x.dtype).tiny)
    return torch.stack([size, size / x.shape[-1], 1 + cosine, along.abs(), along.square() / 2], dim=-1)


Saliences = Annotated[Float[Tensor, "*units measures"], SaliencesEvidence()]
"""`[*units, 5]`: measures of what a unit matters, each of norm 1 over the network; in the order of `MEASURES`."""
