"""Training that turns out longer or shorter than it was planned: the events to come, laid over what is left."""

from collections.abc import Iterable, Sequence

from prunus.core.errors import SpecError
from prunus.core.events import Event

Resteps = Sequence[Sequence[int]]
"""`(at, steps)` pairs: after step `at` the run was given `steps` steps in all."""


def relaid(events: Iterable[Event], steps: int, resteps: Resteps) -> tuple[Event, ...]:
    """A timeline of `steps` steps after all that was changed about their number."""
    found = tuple(events)
    for at, new in resteps:
        found, steps = moved(found, at, steps, new), new
    return found


def moved(events: Iterable[Event], at: int, old: int, new: int) -> tuple[Event, ...]:
    """The events after step `at` of `old` steps, at the same share of what is left of `new` ones.

    Step s > at becomes at + ceil((s - at) (new - at) / (old - at)), in whole numbers: order stays, the last step stays
    the last, and nothing falls on a step that is over. Steps to come that events go back to move with them.
    """

    def place(step: int) -> int:
        return step if step <= at else at - (-(step - at) * (new - at)) // (old - at)

    return tuple(
        e._replace(
            step=place(e.step),
            rewind=None if e.rewind is None else place(e.rewind),
            replay=None if e.replay is None else place(e.replay),
        )
        for e in events
    )


def check_steps(steps: int, at: int, coming: int) -> None:
    """Refuse a number of steps that cannot be had after step `at`, with `coming` events to come.

    Errors: `SpecError`.
    """
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise SpecError(f"restep({steps!r}): a whole number of optimizer steps, those that were made included")
    if steps < at:
        raise SpecError(f"restep({steps}): {at} steps have been made already")
    if steps == at and coming:
        raise SpecError(f"restep({steps}): {coming} events are still to come, and need one more step at least")
