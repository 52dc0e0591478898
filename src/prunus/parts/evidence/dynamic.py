"""What dynamic sparse training is told: averaged dense gradients, Gaussian noise, what a drop leaves."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.parts.evidence.running import Gathered
from prunus.parts.evidence.training import KeptEvidence


class SmoothedGradEvidence(Gathered):
    """The moving average v <- beta v + (1 - beta) dL/dw of dense gradients, from v = 0 (sparse momentum: Dettmers &
    Zettlemoyer 2019, arXiv:1907.04840, section 3). The asking part's field: `momentum`.

    An optimizer's momentum does not tell it: gradients of pruned weights never reach the optimizer. Cost: one product
    per step, a number per weight, and dense gradients at every step.
    """

    key: ClassVar[str] = "smoothed"

    def observe(
        self,
        store: dict[str, Tensor],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        beta = float(settings.get("momentum", 0.9))
        for n, g in gradients.items():
            store[n] = torch.lerp(g, store.get(n, torch.zeros_like(g)), beta)


class GaussianEvidence(Evidence):
    """Independent standard normal numbers, one per weight that produces a unit, drawn on the CPU and then moved."""

    random = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, sources.parameters)

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        drawn: dict[str, Tensor] = {}
        for name, view in super().by_group(sources, tensors).items():
            noise = torch.randn(view.shape, generator=sources.generator, dtype=torch.float64)
            drawn[name] = noise.to(device=view.device, dtype=view.dtype)
        return drawn


class SurvivingEvidence(KeptEvidence):
    """What a drop leaves, before anything is regrown; what is kept by now, where nothing was dropped. Cost: none."""

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        left = {n: m.unsqueeze(-1) for n, m in sources.survivors.items()}
        return {n: left.get(n, kept) for n, kept in super().by_group(sources, tensors).items()}


SmoothedGrad = Annotated[Float[Tensor, "*units k"], SmoothedGradEvidence()]
"""`[*units, k]`: the moving average of the dense gradients of each unit's weights."""

Gaussian = Annotated[Float[Tensor, "*units k"], GaussianEvidence()]
"""`[*units, k]`: standard normal, independent of everything."""
