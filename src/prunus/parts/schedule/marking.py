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
    between the choice is made anew; the last time at the fraction `until` where that is given, and one distance before
    the removal otherwise.
    """

    at: float = 0.0
    cut: float = 0.5
    again: int = 0
    until: float | None = None

    def __post_init__(self) -> None:
        until = self.cut if self.until is None else self.until
        if not (0 <= self.at <= until <= self.cut <= 1 and self.again >= 0):
            raise SpecError(f"{self}: 0 <= at <= until <= cut <= 1 are fractions of the steps, and again >= 0")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        first, last = round(self.at * steps), round(self.cut * steps)
        until, parts = (last, self.again + 1) if self.until is None else (round(self.until * steps), max(1, self.again))
        times = sorted({first + (until - first) * i // parts for i in range(self.again + 1)})
        return (*(Event(t, density, mark=True, revive=True) for t in times), Event(last, density))


@dataclass(frozen=True)
class MarkGradually(Schedule):
    """Choose what goes on a path of rising sparsity, s_t = s_f (1 - (1 - (t - t0) / (t1 - t0))^power), every `every`
    steps from t0 to t1, all units anew each time, and remove it after the fraction `cut` of the steps.

    `begin` and `end` are the fractions t0 and t1; until t0 everything is kept. In between nothing is zero: a gate
    computes with what is chosen (movement pruning: Sanh et al. 2020, arXiv:2005.07683, section 3, whose path is the
    cubic one). Short runs get at least four choices where they have the steps.
    """

    begin: float = 0.1
    end: float = 0.7
    cut: float = 1.0
    every: int = 10
    power: float = 3.0

    def __post_init__(self) -> None:
        if not (0 <= self.begin <= self.end <= self.cut <= 1 and self.every >= 1 and self.power > 0):
            raise SpecError(f"{self}: 0 <= begin <= end <= cut <= 1 are fractions of the steps, every >= 1, power > 0")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        first, last = round(self.begin * steps), round(self.end * steps)
        every, span = min(self.every, max(1, (last - first) // 4)), max(1, last - first)
        path = {t: 1 - (1 - density) * (1 - (1 - (t - first) / span) ** self.power) for t in range(first, last, every)}
        marks = (Event(t, d, mark=True, revive=True) for t, d in (path | {last: density}).items())
        return (*marks, Event(round(self.cut * steps), density, revive=True))


@dataclass(frozen=True)
class MarkAndCut(Schedule):
    """In `periods` equal spans from the fraction `begin` of the steps to `end`: at the start of each as many more units
    are chosen among those that are left, at its end they are removed (HESSO: Chen et al. 2024, arXiv:2409.09085).

    In between nothing of what is marked is zero yet: a penalty or a proximal map brings it there.
    """

    begin: float = 0.1
    end: float = 0.6
    periods: int = 5

    def __post_init__(self) -> None:
        if not (0 <= self.begin <= self.end <= 1 and self.periods >= 1):
            raise SpecError(f"{self}: 0 <= begin <= end <= 1 are fractions of the steps, periods >= 1")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        times = [round((self.begin + (self.end - self.begin) * i / self.periods) * steps) for i in range(self.periods)]
        times.append(round(self.end * steps))
        left = [1 - (1 - density) * (i + 1) / self.periods for i in range(self.periods)]
        left[-1] = density
        spans = zip(times, times[1:], left, strict=False)
        return tuple(e for t, u, d in spans for e in (Event(t, d, mark=True), Event(u, d)))
