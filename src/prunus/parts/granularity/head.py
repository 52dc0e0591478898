"""Whole attention heads."""

from dataclasses import dataclass
from typing import ClassVar

from prunus.parts.granularity.coupled import Coupled


@dataclass(frozen=True)
class Head(Coupled):
    """Attention heads: their rows of the query, key and value projections and their columns of the output projection.

    Where several heads of queries share one of keys and values (grouped queries), they are one unit with it. The width
    of a head stays, because attention divides by its square root. See `Coupled` for the attributes.
    """

    kinds: ClassVar[tuple[str, ...]] = ("head", "kv group")
