"""What a gate is told of the step at hand."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moment:
    """The step at hand, as the gates of one group see it.

    Attributes:
        progress: steps made since the gates began, or since the last event, over those until the next; 1 when it comes.
        density: what the next event keeps.
        keep: `[*units]`, the units that the recipe's allocation would keep, given what the gates are worth by now; only
            where the gate `selects`.
        noise: `[*units]`, uniform in [0, 1), drawn anew for every step; only where the gate `samples`, and not for the
            values that stay.
    """

    progress: float
    density: float
    keep: Bool[Tensor, "*units"] | None = None
    noise: Float[Tensor, "*units"] | None = None
