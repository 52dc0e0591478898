"""What learned gates say that units are worth."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources


class GateValueEvidence(Evidence):
    """What the recipe's gates have learned (what they start from, where nothing was trained); undefined on groups
    without a gate, or whose gate no gradient has come through. Cost: none.
    """

    gates: ClassVar[bool] = True

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield {n: value.unsqueeze(-1) for n, value in sources.gates.items()}


GateValue = Annotated[Float[Tensor, "*units 1"], GateValueEvidence()]
"""`[*units, 1]`: what the gate of each unit has come to."""
