"""Schedules in which a threshold rises, and not a density."""

from dataclasses import dataclass

from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.part import Schedule


@dataclass(frozen=True)
class TwoSlopes(Schedule):
    """Every `every` steps what is worth less than epsilon(t) is removed: epsilon grows by theta per event from t_s to
    t_r, by phi = `steepening` theta from there to t_e (Narang et al. 2017, ICLR, arXiv:1704.05119, algorithm 1).

    `begin`, `ramp` and `end` are t_s, t_r and t_e as fractions of the steps. theta is such that epsilon(t_e) = q; here
    q is worth as much as the least of what the final density would keep of the group at that moment, so that the last
    event meets the density exactly. Differs: the paper measures q once, on a dense network trained before, as the 90th
    percentile of the weights of a kind. `every` shrinks to a quarter of a short ramp.
    """

    begin: float = 0.05
    ramp: float = 0.25
    end: float = 0.5
    every: int = 100
    steepening: float = 1.5

    def __post_init__(self) -> None:
        if not (0 <= self.begin <= self.ramp <= self.end <= 1 and self.every >= 1 and self.steepening > 0):
            raise SpecError(f"{self}: 0 <= begin <= ramp <= end <= 1, every >= 1 and steepening > 0")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        first, bend, last = (round(share * steps) for share in (self.begin, self.ramp, self.end))
        every = min(self.every, max(1, (last - first) // 4))
        whole = (bend - first) + self.steepening * (last - bend)
        events = []
        for t in range(first + every, last, every):
            slow, steep = min(t, bend) - first, max(0, t - bend)
            events.append(Event(t, density, below=(slow + self.steepening * steep) / whole))
        return (*events, Event(last, density))
