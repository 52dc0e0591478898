"""Schedules that prune anew while all weights go on being trained."""

import math
from dataclasses import dataclass

from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.part import Schedule


@dataclass(frozen=True)
class Surgery(Schedule):
    """Choose anew ever more rarely: at step t with the probability (1 + gamma t)^-power, until the fraction `until` of
    the steps; there the units that are not chosen are removed (dynamic network surgery: Guo, Yao & Chen 2016, NIPS,
    arXiv:1608.04493, section 3).

    The final density holds from step 0 on; until the removal events only mark. Differs: no dice. The k-th choice falls
    where the expected number of choices reaches k `every`, so there are as many as the paper expects with `every=1`,
    and evenly fewer with more. gamma and power are those of the official example.
    """

    gamma: float = 1e-4
    power: float = 1.0
    until: float = 0.75
    every: int = 10

    def __post_init__(self) -> None:
        if not (self.gamma > 0 and self.power > 0 and 0 <= self.until <= 1 and self.every >= 1):
            raise SpecError(f"{self}: gamma > 0, power > 0, every >= 1, and until is a fraction of the steps")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        end, expected = round(self.until * steps), 0.0
        times: list[int] = []
        for t in range(end):
            if expected >= len(times) * self.every:
                times.append(t)
            expected += (1 + self.gamma * t) ** -self.power
        return (*(Event(t, density, mark=True, revive=True) for t in times), Event(end, density, revive=True))


@dataclass(frozen=True)
class Readjusted(Schedule):
    """Prune at once, train all weights, the zeroed ones included, and prune anew every `every` steps until the end:
    prune, adjust, re-prune (PARP: Lai et al. 2021, NeurIPS, arXiv:2106.05933, algorithm 1).

    The first pruning removes the share `first` of what is to go and the share grows linearly to 1 (PARP-P has it below
    1). Every event ranks all weights as they are by then; the last one holds. `every` shrinks to a quarter of a short
    run.
    """

    every: int = 50
    first: float = 1.0

    def __post_init__(self) -> None:
        if not (self.every >= 1 and 0 < self.first <= 1):
            raise SpecError(f"{self}: every >= 1 and 0 < first <= 1")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        times = [*range(0, steps, min(self.every, max(1, steps // 4))), steps]
        share = [self.first + (1 - self.first) * t / max(1, steps) for t in times[:-1]]
        early = (Event(t, 1 - (1 - density) * s, hold=False, revive=True) for t, s in zip(times, share, strict=False))
        return (*early, Event(steps, density, revive=True))


@dataclass(frozen=True)
class Explored(Schedule):
    """Every `every` steps until the fraction `until`: mark all but the final density, every unit ranked anew, then let
    the share regrow / 2 (1 + cos(pi t / T)) of all units join what is kept; at T what is marked by then is removed
    (CHEX: Hou et al. 2022, CVPR, arXiv:2203.15794, algorithm 1).

    A gate computes with what is kept, so that what comes back has its weights. `every` shrinks to an eighth of a short
    run.
    """

    every: int = 100
    until: float = 0.72
    regrow: float = 0.3

    def __post_init__(self) -> None:
        if not (self.every >= 1 and 0 <= self.until <= 1 and 0 < self.regrow <= 1):
            raise SpecError(f"{self}: every >= 1, until is a fraction of the steps, 0 < regrow <= 1")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        end = round(self.until * steps)
        events = []
        for t in range(0, end, min(self.every, max(1, steps // 8))):
            more = min(1.0, density + self.regrow / 2 * (1 + math.cos(math.pi * t / end)))
            events += [Event(t, density, mark=True, revive=True), Event(t, more, mark=True, revive=True, grow=True)]
        return (*events, Event(end, density, revive=True))
