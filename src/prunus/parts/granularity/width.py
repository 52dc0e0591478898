"""The width of a residual stream."""

from dataclasses import dataclass
from typing import ClassVar

from prunus.parts.granularity.coupled import Coupled


@dataclass(frozen=True)
class Width(Coupled):
    """Dimensions of a residual stream (embedding width) that normalizations average over.

    Embeddings, every projection that reads or writes the stream, and the norms themselves lose the same dimensions;
    the weights and the epsilon of root-mean-square norms are put right, which is exact but for one rounding of these
    weights. Streams with LayerNorm are only among them with `exact=False`: its mean and variance become those of the
    dimensions that are left. See `Coupled` for the attributes.
    """

    kinds: ClassVar[tuple[str, ...]] = ("width",)
