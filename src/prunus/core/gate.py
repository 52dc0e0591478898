"""What a gate is told of the step at hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moment:
    """The step at hand, as the gates of one group see it.

    Attributes:
        progress: steps made since the gates began, or since the last event that did more than mark, over those until
            the next such event; 1 when it comes.
        density: what the next event keeps.
        keep: `[*units]`, the units that are kept by now: those that the recipe's allocation would keep (where the gate
            `selects`), or those that the last event kept.
        noise: of theta's shape, uniform in [0, 1), drawn anew for every step; only where the gate `samples`, and not
            for the values that stay.
        duals: `[n]`, what the gates carry from step to step, such as the multipliers of their constraints.
        sizes: group name -> how many weights each of its units owns, for penalties on what is left.
        wide: `[*units]`, the units that would be kept at the density that the gate asks for as `wider`; while training.
        w: `[*units, k]`, the weights behind the gates, where the gate `sees`; no gradient goes to them.
        others: group name -> the moment of every group, this one included; while training.
    """

    progress: float
    density: float
    keep: Bool[Tensor, "*units"] | None = None
    noise: Float[Tensor, "..."] | None = None
    duals: Float[Tensor, "n"] | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    wide: Bool[Tensor, "*units"] | None = None
    w: Float[Tensor, "*units k"] | None = None
    others: Mapping[str, "Moment"] = field(default_factory=dict)
