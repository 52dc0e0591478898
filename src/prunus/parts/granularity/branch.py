"""Single residual branches: attention or feed-forward only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.core.errors import SpecError, StructureError, listed
from prunus.core.groups import Group
from prunus.parts.granularity.block import Block


@dataclass(frozen=True)
class Branch(Block):
    """Residual branches that return zero once their parameters are zero: the attention or the feed-forward part of a
    layer, with the norm before it.

    One group for the branches at one place in all layers (`layers.*.attn`, `layers.*.mlp`), so that like is compared
    with like. Needs an example input: what can be removed is found by trying, in float64
    (`prunus.graph.branches`, which also says why the others cannot). In a decoder that can generate with a key-value
    cache the attention of the first layer stays. A branch is scored by all of its weights.

    Attributes:
        reduce: how the scores of a branch's weights become one score.
        exclude: names of modules or parameters, with shell wildcards, whose branches stay.
        at_least: how many branches of every group stay, those that cannot be removed included.
    """

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        from prunus.graph.depth.branches import branches

        if example is None:
            raise SpecError("branches are found by running the model: pass Task(example=...) or batches")
        found = branches(model, example, exclude=self.excluded(model), at_least=self.at_least)
        if not found.groups:
            reasons = [f"{name}: {why}" for name, why in found.refused.items()]
            why = listed(reasons) if reasons else "nothing that a module returns is added to what it was computed from"
            raise StructureError(f"no branch of {type(model).__name__} can be removed; {why}")
        return found.groups
