"""Randomness as evidence: one number per unit from the session's seeded generator."""

from collections.abc import Iterator
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources


class NoiseEvidence(Evidence):
    """Independent uniform numbers in [0, 1), one per unit, drawn group by group on the CPU and then moved."""

    random = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        noise: dict[str, Tensor] = {}
        for group in sources.groups:
            device = sources.parameters[group.members[0].param].device
            noise[group.name] = torch.rand((*group.shape, 1), generator=sources.generator).to(device)
        yield noise


class FinalNoiseEvidence(NoiseEvidence):
    """As `NoiseEvidence`; undefined everywhere before the last event where the asking part says `when="last"`."""

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        if sources.settings.get("when") == "last" and not sources.final:
            yield {}
        else:
            yield from super().collect(sources)


Noise = Annotated[Float[Tensor, "*units 1"], NoiseEvidence()]
"""`[*units, 1]`: uniform in [0, 1), independent of everything."""
