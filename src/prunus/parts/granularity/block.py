"""Whole residual blocks and layers: depth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prunus.core.groups import Group
from prunus.parts.granularity.tried import Tried, with_parts


@dataclass(frozen=True)
class Block(Tried):
    """Blocks that are the identity once their parameters are zero: residual blocks, transformer layers; and branches
    that are added up.

    One group per container (`Sequential`, `ModuleList`, `ModuleDict`, or a module with blocks as attributes). Needs an
    example input: which blocks can be removed is found by trying, in float64 (`prunus.graph.blocks`, which also
    says why the others cannot). A block is scored by all of its weights, so sums over blocks of unequal size favour the
    large ones.

    Attributes:
        reduce: how the scores of a block's weights become one score. There is no mean: blocks of one container may have
            unequally many weights.
        exclude: names of blocks, containers or parameters, with shell wildcards, that stay.
        at_least: entries that every container keeps, those that cannot be removed included.
    """

    uneven: ClassVar[bool] = True
    noun: ClassVar[str] = "block"
    nouns: ClassVar[str] = "blocks"
    gone: ClassVar[str] = "removed whole"
    nothing: ClassVar[str] = "no container of it has two entries with parameters of their own"

    def find(
        self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any]
    ) -> tuple[tuple[Group, ...], Mapping[str, str]]:
        """`prunus.graph.blocks`."""
        from prunus.graph.depth.blocks import blocks

        names = [n for n, _ in (*model.named_modules(), *model.named_parameters())]
        exclude = with_parts(model, self.matched(names))
        found = blocks(model, example, exclude=exclude, at_least=self.at_least)
        return found.groups, found.refused
