"""Whole experts of mixtures of experts."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from prunus.core.errors import SpecError, StructureError, listed
from prunus.core.groups import Group
from prunus.core.part import Granularity, Reduce


@dataclass(frozen=True)
class Expert(Granularity):
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

    reduce: Reduce = "sum"
    exclude: tuple[str, ...] = ()
    at_least: int = 1
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "structured"

    def __post_init__(self) -> None:
        if self.at_least < 1:
            raise SpecError(f"Expert(at_least={self.at_least}): a router keeps at least 1 expert")

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        from prunus.graph.mixture.experts import experts

        if example is None:
            raise SpecError("experts are found by running the model: pass Task(example=...) or batches")
        found = experts(model, example, exclude=self.excluded(model), at_least=self.at_least)
        if not found.groups:
            reasons = [f"{name}: {why}" for name, why in found.refused.items()]
            why = (
                listed(reasons) if reasons else "nothing in it is there once per logit of a router, or all is excluded"
            )
            raise StructureError(f"no expert of {type(model).__name__} can be removed; {why}")
        return found.groups

    def excluded(self, model: nn.Module) -> tuple[str, ...]:
        """The paths and names that are matched."""
        names = [n for n, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())]
        return tuple(n for n in names if any(fnmatch.fnmatch(n, e) for e in self.exclude))
