"""Criteria that ask a linear classifier what a block has learned."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence.probes import ProbeAccuracy


@dataclass(frozen=True)
class ProbeGain(Criterion):
    """accuracy after the block - accuracy before it, of a linear classifier on the features (Chen & Zhao 2018, IEEE
    TPAMI): layers that add little are removed.

    Shapes: `[units, 2] -> [units]`. Units: accuracy; comparable across blocks of all widths. Cost: one forward per
    batch, and one small linear system per block. Undefined for units that are no modules (take granularity=Block()).
    Fails: `SpecError` where a batch does not say one class per sample.
    Differs: the probes are ridge regressions in closed form, and each sample is judged by that of the others; the paper
    trains its linear classifiers, one per label where a picture has several.
    """

    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise SpecError(f"ProbeGain(ridge={self.ridge}) is above 0")

    def __call__(self, right: ProbeAccuracy) -> Float[Tensor, "units"]:
        before, after = right.unbind(-1)
        return after - before
