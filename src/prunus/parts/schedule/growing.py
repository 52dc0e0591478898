"""Schedules that grow: rewiring at every step, pruning and regrowing towards a density, phases that alternate."""

import math
from dataclasses import dataclass

from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.part import Schedule


@dataclass(frozen=True)
class Rewiring(Schedule):
    """Every `every` steps whatever is worth less than nothing is dropped, and as many units are regrown, at zero,
    wherever in the network (DEEP R: Bellec et al. 2018, arXiv:1711.05136, algorithm 1, with `every=1`).

    Nothing is regrown after the last step: it would stay zero. Cost: one scoring per event.
    """

    every: int = 1
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1 or not 0.0 <= self.until <= 1.0:
            raise SpecError(f"{self}: every >= 1, and until is a fraction of the steps")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        end = min(round(self.until * steps), steps - 1)
        return (
            Event(0, density),
            *(
                Event(t, density, regrow=1.0, under=0.0, jointly=True, fresh=True)
                for t in range(self.every, end + 1, self.every)
            ),
        )


@dataclass(frozen=True)
class GradualPruneAndGrow(Schedule):
    """Every `every` steps prune to d_t, then drop the fraction r_t of every group's kept units and regrow as many:
    d_t = d + (initial - d) (1 - t/t_end)^3 until the fraction `end` of the steps, r_t = drop/2 (1 + cos(pi t / T))
    until the last (GraNet: Liu et al. 2021, arXiv:2106.10404, section 3.2).

    With `initial` below 1 the run begins at that density. `every` shrinks to a quarter of a short run; nothing is
    regrown after the last step.
    """

    initial: float = 1.0
    end: float = 0.6875
    every: int = 1000
    drop: float = 0.5

    def __post_init__(self) -> None:
        if not (0.0 < self.initial <= 1.0 and 0.0 < self.end <= 1.0 and self.every >= 1 and 0.0 < self.drop < 1.0):
            raise SpecError(f"{self}: 0 < initial <= 1, 0 < end <= 1, every >= 1 and 0 < drop < 1")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        last = round(self.end * steps)
        every = min(self.every, max(1, last // 4))
        first = max(self.initial, density)
        events = [Event(0, first)] if first < 1.0 and last > 0 else []
        for t in sorted({*range(every, steps, every), last}):
            if t <= last:
                left = (1 - t / last) ** 3 if last else 0.0
                events.append(Event(t, density if t == last else density + (first - density) * left))
            if t % every == 0 and 0 < t < steps:
                share = self.drop / 2 * (1 + math.cos(math.pi * t / steps))
                events.append(Event(t, events[-1].density, regrow=share))
        return tuple(events)


@dataclass(frozen=True)
class GrowThenPrune(Schedule):
    """From a sparse seed grow to a peak, then prune to the budget, each in `rounds` equal portions of the units (NeST:
    Dai, Yin & Jha 2019, arXiv:1711.02017, section 3).

    `seed` and `peak` are multiples of the density asked for, at most 1 of all units; growth ends after the fraction
    `grown` of the steps, pruning after the fraction `pruned`. Short runs take fewer rounds.
    """

    seed: float = 0.5
    peak: float = 2.0
    grown: float = 0.4
    pruned: float = 0.8
    rounds: int = 10

    def __post_init__(self) -> None:
        if not (0.0 < self.seed <= self.peak and self.peak >= 1.0 and self.rounds >= 1):
            raise SpecError(f"{self}: 0 < seed <= peak, peak >= 1 and rounds >= 1")
        if not 0.0 < self.grown <= self.pruned <= 1.0:
            raise SpecError(f"{self}: 0 < grown <= pruned <= 1 are fractions of the steps")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        low, high = min(1.0, self.seed * density), min(1.0, self.peak * density)
        turn, last = min(round(self.grown * steps), max(0, steps - 1)), round(self.pruned * steps)
        up, down = min(self.rounds, turn), max(1, min(self.rounds, last - turn))
        events = [Event(0, low)] if up else []
        for i in range(1, up + 1):
            events.append(Event(turn * i // up, low + (high - low) * i / up, revive=True, grow=True))
        start = high if up else 1.0
        for i in range(1, down + 1):
            kept = density if i == down else start + (density - start) * i / down
            events.append(Event(turn + (last - turn) * i // down, kept))
        return tuple(events)


@dataclass(frozen=True)
class SoftBound(Schedule):
    """Sparse from the start, with more than the budget: every `every` steps prune to the density asked for and grow to
    `factors` times that, one factor after the other from the fractions `until` of the steps on (MEST: Yuan et al. 2021,
    arXiv:2110.14032, elastic mutation with a soft memory bound).

    The last factor is 1: nothing is grown any more, and pruning is over. `every` shrinks to a quarter of the first
    phase of a short run. The defaults are the official code's at 90 % sparsity.
    """

    every: int = 1000
    factors: tuple[float, ...] = (1.5, 1.25)
    until: tuple[float, ...] = (0.5625, 0.75)

    def __post_init__(self) -> None:
        ends = (0.0, *self.until)
        if self.every < 1 or not self.factors or min(self.factors) < 1 or len(self.factors) != len(self.until):
            raise SpecError(f"{self}: every >= 1, and a factor of at least 1 for every end of a phase")
        if any(a >= b for a, b in zip(ends, self.until, strict=False)) or self.until[-1] > 1:
            raise SpecError(f"{self}: the ends of the phases are ascending fractions of the steps")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        ends = [round(u * steps) for u in self.until]
        every = min(self.every, max(1, ends[0] // 4))
        events = [Event(0, min(1.0, density * self.factors[0]))] if ends[-1] > 0 else []
        for t in range(every, ends[-1], every):
            factor = next(f for f, end in zip(self.factors, ends, strict=True) if t < end)
            events.append(Event(t, density))
            events.append(Event(t, min(1.0, density * factor), revive=True, grow=True))
        return (*events, Event(ends[-1], density))


@dataclass(frozen=True)
class Alternating(Schedule):
    """Dense and sparse phases in turn: prune, ranking all units anew; after a while let all of them train again
    (AC/DC: Peste et al. 2021, arXiv:2106.12379, algorithm 1).

    The run begins dense, for the fraction `warmup` of the steps, and ends sparse, for at least the fraction `last`; in
    between sparse and dense phases take the fractions `sparse` and `dense`. The defaults are the official code's for
    CIFAR-100: 10, 20, 20 and 30 of 200 epochs. What was pruned begins at zero when it comes back.
    """

    warmup: float = 0.05
    sparse: float = 0.1
    dense: float = 0.1
    last: float = 0.15

    def __post_init__(self) -> None:
        if min(self.sparse, self.dense) <= 0 or min(self.warmup, self.last) < 0 or self.warmup + self.last > 1:
            raise SpecError(f"{self}: phases are positive fractions of the steps, and warmup + last <= 1")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        events = [Event(round(self.warmup * steps), density, revive=True)]
        i = 0
        while (back := self.warmup + i * (self.sparse + self.dense) + self.sparse) + self.dense <= 1 - self.last + 1e-9:
            open_, shut = round(back * steps), round((back + self.dense) * steps)
            if events[-1].step < open_ < shut:
                events += [Event(open_, 1.0, revive=True), Event(shut, density, revive=True)]
            i += 1
        return tuple(events)
