"""Single residual branches: attention or feed-forward only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prunus.core.groups import Group
from prunus.parts.granularity.tried import Tried, with_parts


@dataclass(frozen=True)
class Branch(Tried):
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

    uneven: ClassVar[bool] = True
    noun: ClassVar[str] = "branch"
    nouns: ClassVar[str] = "branches"
    nothing: ClassVar[str] = "nothing that a module returns is added to what it was computed from"

    def find(
        self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any]
    ) -> tuple[tuple[Group, ...], Mapping[str, str]]:
        """`prunus.graph.branches`."""
        from prunus.graph.depth.branches import branches

        names = [n for n, _ in (*model.named_modules(), *model.named_parameters())]
        exclude = with_parts(model, self.matched(names))
        found = branches(model, example, exclude=exclude, at_least=self.at_least)
        return found.groups, found.refused
