"""Whole experts of mixtures of experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prunus.core.groups import Group
from prunus.parts.granularity.tried import Tried


@dataclass(frozen=True)
class Expert(Tried):
    """Experts of mixtures of experts: a removed one is never chosen again, and routing goes on over those that stay
    (Lu et al. 2024, arXiv:2402.14800).

    One group per router. Needs an example input, best one with many different tokens: experts are found by trying, in
    float64 (`prunus.graph.experts`, which also says why others cannot be removed). An expert is scored by its
    own weights, without those of the router; while a session masks experts, their weights are zero and the router stays
    as it is. What a token costs is the same for any number of experts where the number that is chosen is fixed, so a
    budget in MACs counts only what is saved in the router there; parameters and bytes go with the experts.

    Attributes:
        reduce: how the scores of an expert's weights become one score.
        exclude: names of groups, or of tensors that go with experts, with shell wildcards, that stay whole.
        at_least: experts that every router keeps (never fewer than it chooses at once).
    """

    keeps: ClassVar[str] = "a router keeps at least 1 expert"
    noun: ClassVar[str] = "expert"
    nouns: ClassVar[str] = "experts"
    nothing: ClassVar[str] = "nothing in it is there once per logit of a router, or all is excluded"

    def find(
        self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any]
    ) -> tuple[tuple[Group, ...], Mapping[str, str]]:
        """`prunus.graph.experts`."""
        from prunus.graph.mixture.experts import experts

        names = [n for n, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())]
        found = experts(model, example, exclude=self.matched(names), at_least=self.at_least)
        return found.groups, found.refused
