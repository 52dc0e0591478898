"""Criteria with a guarantee: the largest share in what a neuron adds up, over a sample of inputs."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.part import Criterion
from prunus.parts.evidence.relative import RelativeChannel, RelativeWeight


@dataclass(frozen=True)
class EmpiricalSensitivity(Criterion):
    """max_x w_ij a_j(x) / sum_k w_ik a_k(x) over weights of one sign (SiPP: Baykal et al. 2019, arXiv:1910.05422).

    Dropping weights changes a neuron's sum by at most the sum of their sensitivities, relatively, on the inputs seen.
    Shapes: `[rows, columns, 1] -> [rows, columns, 1]`. Units: a share, in [0, 1]; comparable across the network.
    Undefined for whole channels, and for weights whose use is not seen. Cost: one forward per batch, and a comparison
    for every product.
    """

    def __call__(self, s: RelativeWeight) -> Float[Tensor, "*units 1"]:
        return s


@dataclass(frozen=True)
class ReaderSensitivity(Criterion):
    """max over readers i and inputs x of w_ij a_j(x) / sum_k w_ik a_k(x): how much of any sum behind it a channel can
    make up (PFP: Liebenwein et al. 2020, arXiv:1911.07412).

    Shapes: `[units, 1] -> [units, 1]`. Units: a share, in [0, 1]. Undefined where the readers of a unit are not seen.
    Cost: one forward per batch, and a comparison for every product of the readers.
    """

    def __call__(self, s: RelativeChannel) -> Float[Tensor, "*units 1"]:
        return s
