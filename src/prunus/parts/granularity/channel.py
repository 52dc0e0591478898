"""Whole channels of convolutions and neurons of linear layers, with everything coupled to them."""

from dataclasses import dataclass
from typing import ClassVar

from prunus.parts.granularity.coupled import Coupled


@dataclass(frozen=True)
class Channel(Coupled):
    """Output channels of convolutions and neurons of linear layers, with everything coupled to them.

    See `Coupled` for the attributes and for what it needs.
    """

    kinds: ClassVar[tuple[str, ...]] = ("channel", "neuron")
