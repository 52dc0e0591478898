"""Granularities: what one unit is."""

from prunus.parts.granularity.block import Block
from prunus.parts.granularity.branch import Branch
from prunus.parts.granularity.channel import Channel
from prunus.parts.granularity.coupled import Coupled
from prunus.parts.granularity.element import Element
from prunus.parts.granularity.expert import Expert
from prunus.parts.granularity.head import Head
from prunus.parts.granularity.inner import Inner, Middle
from prunus.parts.granularity.joint import Joint
from prunus.parts.granularity.rank import Rank
from prunus.parts.granularity.remainder import Remainder
from prunus.parts.granularity.tile import Tile
from prunus.parts.granularity.width import Width

__all__ = [
    "Block",
    "Branch",
    "Channel",
    "Coupled",
    "Element",
    "Expert",
    "Head",
    "Inner",
    "Joint",
    "Middle",
    "Rank",
    "Remainder",
    "Tile",
    "Width",
]
