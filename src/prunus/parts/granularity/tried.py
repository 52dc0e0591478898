"""What whole structures have in common that are found by trying."""

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from prunus.core.errors import SpecError, StructureError, listed
from prunus.core.groups import Group
from prunus.core.part import Granularity, Reduce


@dataclass(frozen=True)
class Tried(Granularity, ABC):
    """Units that are found by running the model with and without them.

    Attributes:
        reduce: how the scores of a unit's weights become one score.
        exclude: names, with shell wildcards, that stay.
        at_least: units that every group keeps.
        keeps: what keeps at least one unit, for the error.
        uneven: whether units have unequally many weights, so that no mean is taken of their scores.
        noun: what one unit is called.
        nouns: what several are called.
        gone: what is done with it.
        nothing: why there is none where nothing was even tried.
    """

    reduce: Reduce = "sum"
    exclude: tuple[str, ...] = ()
    at_least: int = 1
    structure: ClassVar[Literal["unstructured", "semi-structured", "structured"]] = "structured"
    keeps: ClassVar[str] = "a container keeps at least 1 entry"
    uneven: ClassVar[bool] = False
    noun: ClassVar[str]
    nouns: ClassVar[str]
    gone: ClassVar[str] = "removed"
    nothing: ClassVar[str]

    def __post_init__(self) -> None:
        if self.at_least < 1:
            raise SpecError(f"{type(self).__name__}(at_least={self.at_least}): {self.keeps}")
        if self.uneven and self.reduce == "mean":
            raise SpecError(
                f"{type(self).__name__}(reduce='mean'): units have unequally many weights; use sum, l2 or max"
            )

    def __call__(self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any] | None) -> tuple[Group, ...]:
        if example is None:
            raise SpecError(f"{self.nouns} are found by running the model: pass Task(example=...) or batches")
        groups, refused = self.find(model, example)
        if not groups:
            why = listed([f"{name}: {why}" for name, why in refused.items()]) if refused else self.nothing
            raise StructureError(f"no {self.noun} of {type(model).__name__} can be {self.gone}; {why}")
        return groups

    @abstractmethod
    def find(
        self, model: nn.Module, example: tuple[Any, ...] | Mapping[str, Any]
    ) -> tuple[tuple[Group, ...], Mapping[str, str]]:
        """What can be removed, and why the rest cannot."""

    def matched(self, names: Iterable[str]) -> list[str]:
        """Those that the user excluded."""
        return [n for n in names if n and any(fnmatch.fnmatch(n, e) for e in self.exclude)]


def with_parts(model: nn.Module, hit: Sequence[str]) -> tuple[str, ...]:
    """The paths of the modules that are hit themselves, or are parts or owners of what is hit."""
    paths = [n for n, _ in model.named_modules() if n]
    return tuple(p for p in paths if any(h == p or h.startswith(f"{p}.") or p.startswith(f"{h}.") for h in hit))
