"""How wide every layer would be by another measure than the criterion's own."""

from collections.abc import Iterator
from typing import Annotated

import torch
from jaxtyping import Bool
from torch import Tensor

from prunus.core.evidence import GroupTensors, Sources
from prunus.parts.evidence.weights import ScaleEvidence


class KeptByScaleEvidence(ScaleEvidence):
    """What the recipe's allocation would keep at the density of the event at hand if units were worth |gamma|, the mean
    over a unit's normalizations; everything outside of a session. Undefined on groups without one. Cost: a selection.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        scales = self.by_group(sources, {name: p.detach() for name, p in sources.parameters.items()})
        scores = {name: gamma.abs().mean(-1) for name, gamma in scales.items()}
        if sources.choose is None:
            yield {name: torch.ones_like(s, dtype=torch.bool).unsqueeze(-1) for name, s in scores.items()}
        else:
            found = sources.choose(scores)
            yield {name: found[name].unsqueeze(-1) for name in scores}


KeptByScale = Annotated[Bool[Tensor, "*units 1"], KeptByScaleEvidence()]
"""`[*units, 1]`: whether a ranking of the normalization scales would keep the unit now."""
