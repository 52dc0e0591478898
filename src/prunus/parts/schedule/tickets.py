"""Tickets that are drawn once: when masks stop moving, or after several rounds of learning."""

from dataclasses import dataclass

from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.core.part import Schedule


@dataclass(frozen=True)
class EarlyBird(Schedule):
    """Prune as soon as the masks stop moving (You et al. 2020, arXiv:1909.11957, algorithm 1).

    `probes` times at even distances, the last after the fraction `until` of the steps, the masks that pruning would
    make are drawn. The first that differ in less than `settle` of all units from each of the `window` drawn before are
    carried out; the last ones are in any case. `rewind` puts the weights back to that fraction of the steps first
    (0: to what the run began with); None goes on with the weights as they are.

    Differs: the paper draws once per epoch (set `probes` to the number of epochs), once before the first step, and
    has no deadline. Its code accepts a distance of exactly `settle`.
    """

    probes: int = 20
    until: float = 0.5
    settle: float = 0.1
    window: int = 4
    rewind: float | None = None

    def __post_init__(self) -> None:
        back = 0.0 if self.rewind is None else self.rewind
        if self.probes < 1 or self.window < 1 or not 0.0 < self.settle <= 1.0:
            raise SpecError(f"{self}: probes >= 1, window >= 1 and 0 < settle <= 1")
        if not 0.0 < self.until <= 1.0 or not 0.0 <= back < self.until / self.probes:
            raise SpecError(f"{self}: 0 < until <= 1, and rewind lies before the first probe")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        last = round(self.until * steps)
        probes = min(self.probes, max(1, last))
        times = [round(last * i / probes) for i in range(1, probes + 1)]
        back = None if self.rewind is None else int(self.rewind * steps)
        return tuple(
            Event(t, density, settle=1.0 if t == times[-1] else self.settle, window=self.window, rewind=back)
            for t in times
        )


@dataclass(frozen=True)
class Relearned(Schedule):
    """Learn in `rounds` rounds, going back after each, and prune once, at the end of the last (continuous
    sparsification: Savarese, Silva & Maire 2020, arXiv:1912.04427).

    All segments share the steps: `rounds` of learning and the training of the ticket; the first runs T steps, the
    others from the rewind point to T. `rewind`: the rewind point as a fraction of T (the official code goes back to
    epoch 2 of 85). A run with too few steps does as many rounds as it has steps for.
    """

    rounds: int = 3
    rewind: float = 0.024

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0.0 <= self.rewind < 1.0:
            raise SpecError(f"{self}: rounds >= 1 and 0 <= rewind < 1")

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        rounds = min(self.rounds, max(1, steps - 1))
        segment = max(1, int(steps / (1 + rounds * (1 - self.rewind)))) if steps else 0
        while segment > 1 and segment + rounds * (segment - int(self.rewind * segment)) > steps:
            segment -= 1
        back = int(self.rewind * segment)
        times = [segment + i * (segment - back) for i in range(rounds)]
        return tuple(Event(t, density if t == times[-1] else 1.0, rewind=back) for t in times)
