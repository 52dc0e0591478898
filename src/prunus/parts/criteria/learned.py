"""Criteria that leave the judgement to what was learned."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Criterion
from prunus.parts.evidence import GateValue


@dataclass(frozen=True)
class LearnedGate(Criterion):
    """What the recipe's gate has learned that a unit is worth (`Gate.worth`).

    Shapes: `[*units, 1] -> [*units, 1]`. Units: those of the gate. Cost: none; the gates were trained before. Fails:
    `SpecError` where the recipe has no gate.
    """

    def __call__(self, gate: GateValue) -> Float[Tensor, "*units 1"]:
        return gate
