"""Schedules: when units are removed. Every schedule is a function from (final density, steps) to events."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.part import Schedule
from prunus.parts.schedule.anew import Explored, Readjusted, Surgery
from prunus.parts.schedule.growing import (
    Alternating,
    GradualPruneAndGrow,
    GrowThenPrune,
    Rewiring,
    SoftBound,
)
from prunus.parts.schedule.marking import MarkAndCut, MarkGradually, MarkThenCut
from prunus.parts.schedule.rising import TwoSlopes
from prunus.parts.schedule.tickets import EarlyBird, Relearned

__all__ = [
    "Alternating",
    "EarlyBird",
    "Escaping",
    "Explored",
    "Gradual",
    "GradualPruneAndGrow",
    "GrowThenPrune",
    "Iterative",
    "MarkAndCut",
    "MarkGradually",
    "MarkThenCut",
    "Marked",
    "OneShot",
    "PruneAndGrow",
    "Readjusted",
    "Relearned",
    "Repeated",
    "Returning",
    "Rewiring",
    "Rounds",
    "SoftBound",
    "Surgery",
    "TwoSlopes",
]


def _fraction(owner: str, name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise SpecError(f"{owner}({name}={value}) is a fraction of the training steps, in [0, 1]")


@dataclass(frozen=True)
class OneShot(Schedule):
    """Everything at once, after the fraction `at` of the training steps (0: before the first)."""

    at: float = 0.0

    def __post_init__(self) -> None:
        _fraction("OneShot", "at", self.at)

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        return (Event(round(self.at * steps), density),)


@dataclass(frozen=True)
class Iterative(Schedule):
    """Score and prune in `rounds` rounds with no training in between (SynFlow: arXiv:2006.05467, algorithm 1).

    After round k the density is density^(k/rounds) (`exponential`) or 1 - (1 - density) k/rounds (`linear`). With
    `revive=True` every round ranks all units anew and those that come back have their weights back, as FORCE has it (de
    Jorge et al. 2021, arXiv:2006.09081, algorithm 1); before training only.
    """

    rounds: int = 100
    spacing: Literal["exponential", "linear"] = "exponential"
    at: float = 0.0
    revive: bool = False

    def __post_init__(self) -> None:
        _fraction("Iterative", "at", self.at)
        if self.rounds < 1:
            raise SpecError(f"Iterative(rounds={self.rounds}): at least one round")
        if self.revive and self.at > 0:
            raise SpecError(f"Iterative(at={self.at}, revive=True): weights come back as before training, so at=0")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        shares = [k / self.rounds for k in range(1, self.rounds + 1)]
        path = [density**s if self.spacing == "exponential" else 1 - (1 - density) * s for s in shares]
        path[-1] = density
        back = 0 if self.revive else None
        return tuple(Event(round(self.at * steps), d, rewind=back, revive=self.revive) for d in path)


@dataclass(frozen=True)
class Gradual(Schedule):
    """Sparsity s_t = s_f (1 - (1 - (t - t0)/(t1 - t0))^power), every `every` steps from t0 to t1: cubic for gradual
    magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1 with s_i = 0), power 1 for equal portions.

    `begin` and `end` are fractions of the steps. Short runs get at least four events where they have the steps.
    `soft=True` only zeroes the units until the last event, which then go on training, compete again and may recover.
    """

    begin: float = 0.0
    end: float = 0.75
    every: int = 100
    power: float = 3.0
    soft: bool = False

    def __post_init__(self) -> None:
        _fraction("Gradual", "begin", self.begin)
        _fraction("Gradual", "end", self.end)
        if self.begin > self.end or self.every < 1 or self.power <= 0:
            raise SpecError(f"{self}: begin <= end, every >= 1 and power > 0")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        first, last = round(self.begin * steps), round(self.end * steps)
        every = min(self.every, max(1, (last - first) // 4))
        times = [*range(first + every, last, every), last] if last > first else [last]
        span = max(1, last - first)
        removed = [(1 - density) * (1 - (1 - (t - first) / span) ** self.power) for t in times]
        return tuple(
            Event(t, density if t == last else 1 - r, hold=not self.soft or t == last, revive=self.soft)
            for t, r in zip(times, removed, strict=True)
        )


@dataclass(frozen=True)
class PruneAndGrow(Schedule):
    """Sparse from the start; every `every` steps until `until`, the fraction drop/2 (1 + cos(pi t / T_end)) of each
    group's kept units is dropped and as many are regrown (RigL: Evci et al. 2020, arXiv:1911.11134, section 3; SET
    with `decay="none"`).

    `across`: units of all groups compete for staying; `jointly`: for being regrown; `fresh`: what is dropped and
    regrown at once starts at zero. `skip_step=True` leaves out the optimizer step at an update, as the official RigL
    code does. `every` shrinks to a quarter of a short run. Nothing is regrown after the last step: it would stay zero
    (SET's algorithm 1 does not either).
    """

    every: int = 100
    until: float = 0.75
    drop: float = 0.3
    decay: Literal["cosine", "none"] = "cosine"
    skip_step: bool = False
    across: bool = False
    jointly: bool = False
    fresh: bool = False

    def __post_init__(self) -> None:
        _fraction("PruneAndGrow", "until", self.until)
        if not 0.0 < self.drop < 1.0 or self.every < 1:
            raise SpecError(f"PruneAndGrow(drop={self.drop}, every={self.every}): 0 < drop < 1, every >= 1")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        end = round(self.until * steps)
        every = min(self.every, max(1, steps // 4))
        events = [Event(0, density)]
        how = Event(0, density, skip=self.skip_step, across=self.across, jointly=self.jointly, fresh=self.fresh)
        for t in range(every, min(end, steps - 1) + 1, every):
            share = self.drop / 2 * (1 + math.cos(math.pi * t / end)) if self.decay == "cosine" else self.drop
            if share > 0:
                events.append(how._replace(step=t, regrow=share))
        return tuple(events)


@dataclass(frozen=True)
class Rounds(Schedule):
    """Train, prune, rewind, train again: iterative magnitude pruning (Frankle & Carbin 2019, arXiv:1803.03635).

    Each round removes `per_round` of what is left, as many rounds as the density takes (the last one exactly to it).
    All segments share the steps: training runs T steps, every later one from the rewind point to T. `rewind` is the
    rewind point as a fraction of T (0: initialization; late rewinding: Frankle et al. 2020, arXiv:1912.05671).
    `what="weights"` rewinds weights and learning rate; `what="rate"` only the learning rate (Renda et al. 2020,
    arXiv:2003.02389). A run with fewer steps than rounds does as many rounds as it has steps for. `revive=True` lets
    weights that a mask left out come back in a later one, at their values of the rewind point.
    """

    per_round: float = 0.2
    rewind: float = 0.0
    what: Literal["weights", "rate"] = "weights"
    revive: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.per_round < 1.0 or not 0.0 <= self.rewind < 1.0:
            raise SpecError(
                f"Rounds(per_round={self.per_round}, rewind={self.rewind}): 0 < per_round < 1, 0 <= rewind < 1"
            )

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        rounds = max(1, math.ceil(round(math.log(density) / math.log(1 - self.per_round), 9))) if density < 1 else 1
        rounds = min(rounds, max(1, steps - 1))
        segment = max(1, int(steps / (1 + rounds * (1 - self.rewind)))) if steps else 0
        # Whole steps cost the rewind point up to one step per round: shorten the segments until all rounds fit.
        while segment > 1 and segment + rounds * (segment - int(self.rewind * segment)) > steps:
            segment -= 1
        back = int(self.rewind * segment)
        events = []
        for i in range(1, rounds + 1):
            kept = density if i == rounds else (1 - self.per_round) ** i
            when = segment + (i - 1) * (segment - back)
            events.append(
                Event(when, max(kept, density), rewind=back, revive=self.revive)
                if self.what == "weights"
                else Event(when, max(kept, density), replay=back, revive=self.revive)
            )
        return tuple(events)


@dataclass(frozen=True)
class Repeated(Schedule):
    """Prune `times` times at even distances, the last at the end, each time ranking all units anew, those pruned before
    included (soft filter pruning: He et al. 2018, arXiv:1808.06866; FPGM: He et al. 2019, arXiv:1811.00250).

    `hold=False` only zeroes the units, which then go on training and may recover; the last event always holds. The
    papers prune once per epoch: set `times` to the number of epochs.
    """

    times: int = 10
    hold: bool = False

    def __post_init__(self) -> None:
        if self.times < 1:
            raise SpecError(f"Repeated(times={self.times}): at least once")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        times = min(self.times, max(1, steps))
        return tuple(
            Event(round(steps * i / times), density, hold=self.hold or i == times, revive=True)
            for i in range(1, times + 1)
        )


@dataclass(frozen=True)
class Returning(Schedule):
    """The schedule inside, but its last event gives all weights back as they were before the first: what earlier rounds
    zeroed can be kept again (by an allocation that chooses it: `Shuffled(when="last")`).

    Only for schedules whose events all come before training. Cost: a copy of the weights for that long. Fails:
    `SpecError` for a schedule that trains between its events.
    """

    of: Schedule = OneShot()

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        events = self.of(density, steps)
        if any(e.step > 0 for e in events):
            raise SpecError(f"Returning gives back weights from before training, and {self.of} trains between events")
        return (*events[:-1], events[-1]._replace(rewind=0))


@dataclass(frozen=True)
class Marked(Schedule):
    """The schedule inside, of which all events but the last only mark: gates compute with the masks, and the weights
    behind them go on as they are. Every event chooses among all units anew.

    `until`: the last event only marks as well, and so do further ones at the same distance and density, until what is
    marked by then is removed after this fraction of the steps. None removes it with the last event of the schedule
    inside.
    """

    of: Schedule = Gradual()
    until: float | None = None

    def __post_init__(self) -> None:
        if self.until is not None:
            _fraction("Marked", "until", self.until)

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        *early, last = self.of(density, steps)
        end = max(last.step, round((self.until or 0.0) * steps))
        times = [*(e.step for e in early), last.step]
        distance = max([b - a for a, b in pairwise(times)], default=end - last.step)
        early += [last._replace(step=t) for t in range(last.step, end, max(1, distance))]
        return (*(e._replace(mark=True, revive=True) for e in early), last._replace(step=end, revive=True))


@dataclass(frozen=True)
class Escaping(Schedule):
    """The schedule inside, with the fraction `drop` of every group's kept units dropped and regrown right after its
    first event, to leave the basin that training has come to (EDST ensembles: Liu et al. 2022, arXiv:2106.14568,
    section 3.3).
    """

    of: Schedule = PruneAndGrow(every=1000, until=1.0, drop=0.5, decay="none")
    drop: float = 0.8

    def __post_init__(self) -> None:
        if not 0.0 < self.drop < 1.0:
            raise SpecError(f"Escaping(drop={self.drop}): 0 < drop < 1")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        first, *rest = self.of(density, steps)
        jump = [first._replace(regrow=self.drop)] if first.step < steps else []
        return (first, *jump, *rest)
