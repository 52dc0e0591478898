"""Components of factorized layers: rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prunus.core.factors import Factors
from prunus.core.groups import Group
from prunus.parts.granularity.coupled import Coupled


@dataclass(frozen=True)
class Rank(Coupled):
    """Components of the layers that `Factorize` wrote as products, and nothing else.

    A unit is a row of the first factor with its column of the second. With `Channel()` instead, components compete with
    channels and neurons.

    See `Coupled` for the attributes and for what it needs.
    """

    kinds: ClassVar[tuple[str, ...]] = ("channel", "neuron")

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        between = {f"{name}.0.weight" for name, m in model.named_modules() if isinstance(m, Factors)}
        groups = super().__call__(model, example)
        return tuple(g for g in groups if any(m.param in between for m in g.with_role("out")))
