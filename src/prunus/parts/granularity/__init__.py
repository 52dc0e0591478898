"""Granularities: what one unit is."""

from prunus.parts.granularity.channel import Channel
from prunus.parts.granularity.element import Element

__all__ = ["Channel", "Element"]
