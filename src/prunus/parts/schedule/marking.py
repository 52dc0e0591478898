"""Schedules that choose first and remove later."""

from dataclasses import dataclass

from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.part import Schedule


@dataclass(frozen=True)
class MarkThenCut(Schedule):
    """Choose what goes after the fraction `at` of the steps, remove it after the fraction `cut`.

    In between nothing is zero: a penalty, a proximal map or a gate works on what is marked, so that its removal hurts
    less (growing regularization: Wang et al. 2021, arXiv:2012.09243). `again` further times at even distances in
    between the choice is made anew.
    """

    at: float = 0.0
    cut: float = 0.5
    again: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.at <= self.cut <= 1 and self.again >= 0):
            raise SpecError(f"{self}: 0 <= at <= cut <= 1 are fractions of the steps, and again >= 0")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        first, last = round(self.at * steps), round(self.cut * steps)
        times = sorted({first + (last - first) * i // (self.again + 1) for i in range(self.again + 1)})
        return (*(Event(t, density, mark=True, revive=True) for t in times), Event(last, density))
