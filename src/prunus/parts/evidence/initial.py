"""Where training began: the weights before the first step."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources


class InitialWeightEvidence(Evidence):
    """The producing weights as they were before the first training step and before anything was pruned.

    Where nothing was trained or pruned yet they are the weights as they are. Cost: a copy of all weights for the length
    of the run.
    """

    initial: ClassVar[bool] = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield self.by_group(sources, {name: p.detach() for name, p in sources.parameters.items()})

    def by_group(self, sources: Sources, tensors: Mapping[str, Tensor]) -> GroupTensors:
        return super().by_group(sources, {**tensors, **(sources.initial or {})})


InitialWeight = Annotated[Float[Tensor, "*units k"], InitialWeightEvidence()]
"""`[*units, k]`: the weights that produce each unit, before the first step."""
