"""Whole residual blocks and layers: depth."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from prunus.core.errors import SpecError, StructureError, listed
from prunus.core.groups import Group
from prunus.core.part import Granularity, Reduce


@dataclass(frozen=True)
class Block(Granularity):
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

    reduce: Reduce = "sum"
    exclude: tuple[str, ...] = ()
    at_least: int = 1
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "structured"

    def __post_init__(self) -> None:
        if self.at_least < 1:
            raise SpecError(f"{type(self).__name__}(at_least={self.at_least}): a container keeps at least 1 entry")
        if self.reduce == "mean":
            raise SpecError(
                f"{type(self).__name__}(reduce='mean'): units have unequally many weights; use sum, l2 or max"
            )

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        from prunus.graph.depth.blocks import blocks

        if example is None:
            raise SpecError("blocks are found by running the model: pass Task(example=...) or batches")
        found = blocks(model, example, exclude=self.excluded(model), at_least=self.at_least)
        if not found.groups:
            reasons = [f"{name}: {why}" for name, why in found.refused.items()]
            why = listed(reasons) if reasons else "no container of it has two entries with parameters of their own"
            raise StructureError(f"no block of {type(model).__name__} can be removed whole; {why}")
        return found.groups

    def excluded(self, model: nn.Module) -> tuple[str, ...]:
        """The paths of the modules that stay: matched themselves, or parts or owners of what is matched."""
        names = [n for n, _ in model.named_modules()] + [n for n, _ in model.named_parameters()]
        hit = [n for n in names if n and any(fnmatch.fnmatch(n, e) for e in self.exclude)]
        paths = [n for n, _ in model.named_modules() if n]
        return tuple(p for p in paths if any(h == p or h.startswith(f"{p}.") or p.startswith(f"{h}.") for h in hit))
