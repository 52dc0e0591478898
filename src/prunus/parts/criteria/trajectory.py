"""Criteria from where a weight began and where training took it."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import InitialWeight, Weight

Combine = Literal["sum", "smaller", "distance"]
Signs = Literal["any", "same", "different"]


@dataclass(frozen=True)
class WeightTrajectory(Criterion):
    """final |w_T| + initial |w_0|: the mask criteria of Zhou et al. 2019 (arXiv:1905.01067, section 2, figure 2).

    | | final | initial | combine |
    | :-- | :-- | :-- | :-- |
    | large / small final | 1 / -1 | 0 | sum |
    | large / small init | 0 | 1 / -1 | sum |
    | magnitude increase | 1 | -1 | sum |
    | large init large final, small init small final | 1, -1 | 1, -1 | smaller |
    | movement | 1 | 1 | distance |

    `smaller`: the smaller of the two terms' ranks in the layer, as the authors' code cuts both at one percentile.
    `distance`: |final w_T - initial w_0|. `signs="same"` (or "different") sets the score of weights that changed their
    sign (or did not) to zero. Shapes: `[*units, k] -> [*units, k]`. Units: those of the weights, ranks for `smaller`;
    the paper compares within a layer. Cost: a copy of all weights for the length of the run. Where nothing was trained
    yet, w_0 = w_T.
    """

    final: float = 1.0
    initial: float = 0.0
    combine: Combine = "sum"
    signs: Signs = "any"

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combine) or self.signs not in get_args(Signs):
            raise SpecError(f"{self}: combine is one of {get_args(Combine)}, signs one of {get_args(Signs)}")

    def __call__(self, w: Weight, w0: InitialWeight) -> Float[Tensor, "*units k"]:
        if self.combine == "distance":
            score = (self.final * w - self.initial * w0).abs()
        elif self.combine == "sum":
            score = self.final * w.abs() + self.initial * w0.abs()
        else:
            score = torch.minimum(ranks(self.final * w.abs()), ranks(self.initial * w0.abs()))
        if self.signs == "any":
            return score
        return score.masked_fill((w.sign() == w0.sign()) != (self.signs == "same"), 0.0)


def ranks(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The place of each value in ascending order, from 1; equal values share the highest of their places."""
    flat = values.reshape(-1)
    ordered = flat.sort().values
    return torch.searchsorted(ordered, flat, right=True).double().reshape(values.shape)
