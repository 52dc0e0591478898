"""Schedules: the events of any run, however short, are ordered, fit into it and end at the density asked for."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.core.errors import SpecError
from prunus.core.part import Schedule
from prunus.parts.schedule import Gradual, Iterative, OneShot, PruneAndGrow, Repeated, Rounds

FRACTION = st.floats(0, 1)
STEPS = st.one_of(st.integers(0, 12), st.integers(0, 5000))
SCHEDULES: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(OneShot, at=FRACTION),
    st.builds(Iterative, rounds=st.integers(1, 120), spacing=st.sampled_from(["exponential", "linear"]), at=FRACTION),
    st.builds(
        lambda a, b, every, power: Gradual(begin=min(a, b), end=max(a, b), every=every, power=power),
        FRACTION,
        FRACTION,
        st.integers(1, 300),
        st.floats(0.5, 5),
    ),
    st.builds(
        PruneAndGrow,
        every=st.integers(1, 300),
        until=FRACTION,
        drop=st.floats(0.01, 0.99),
        decay=st.sampled_from(["cosine", "none"]),
        skip_step=st.booleans(),
    ),
    st.builds(
        Rounds, per_round=st.floats(0.05, 0.9), rewind=st.floats(0, 0.99), what=st.sampled_from(["weights", "rate"])
    ),
    st.builds(Repeated, times=st.integers(1, 50), hold=st.booleans()),
)


@settings(deadline=None, max_examples=300)
@given(SCHEDULES, st.floats(0.001, 1.0), STEPS)
def test_events_of_any_run(schedule: Schedule, density: float, steps: int) -> None:
    events = schedule(density, steps)
    assert events
    times = [e.step for e in events]
    assert times == sorted(times)
    assert times[0] >= 0 and times[-1] <= steps
    assert events[-1].density == density
    densities = [e.density for e in events]
    assert all(density <= d <= 1.0 for d in densities)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(densities))
    assert all(e.regrow == 0 or e.step < steps for e in events), "regrown at the end, a unit stays zero"
    assert events[-1].hold
    for event in events:
        back = event.rewind if event.rewind is not None else event.replay
        assert back is None or 0 <= back <= event.step


@settings(deadline=None, max_examples=300)
@given(st.builds(Rounds, per_round=st.floats(0.05, 0.9), rewind=st.floats(0, 0.99)), st.floats(0.001, 0.99), STEPS)
def test_rounds_leave_every_round_its_training(schedule: Rounds, density: float, steps: int) -> None:
    """Segments are equally long, also the one after the last pruning; and none is longer than it has to be."""
    events = schedule(density, steps)
    if steps < 2:
        assert len(events) == 1
        return
    first = events[0].step
    back = events[0].rewind or 0
    gaps = {b.step - a.step for a, b in itertools.pairwise(events)}
    assert gaps <= {first - back}
    assert first >= 1 and events[-1].step + first - back <= steps
    needed = max(1, math.ceil(round(math.log(density) / math.log(1 - schedule.per_round), 9)))
    assert len(events) == min(needed, steps - 1)


def test_one_shot_falls_on_its_fraction() -> None:
    assert [(e.step, e.density) for e in OneShot(at=0.5)(0.1, 100)] == [(50, 0.1)]
    assert OneShot()(0.1, 100)[0].step == 0


def test_iterative_paths() -> None:
    assert [e.density for e in Iterative(rounds=2)(0.25, 0)] == [0.5, 0.25]
    assert [e.density for e in Iterative(rounds=2, spacing="linear")(0.5, 0)] == [0.75, 0.5]
    assert len(Iterative()(0.1, 0)) == 100


def test_gradual_in_a_short_run_still_comes_in_portions() -> None:
    assert [e.step for e in Gradual(end=1.0)(0.1, 8)] == [2, 4, 6, 8]
    assert [e.step for e in Gradual()(0.1, 0)] == [0]


def test_rigl_drops_along_a_half_cosine() -> None:
    """f(t) = alpha/2 (1 + cos(pi t / T_end)): 0.3 at the start, 0.15 half way, nothing at the end."""
    events = PruneAndGrow(every=100, until=0.75, drop=0.3, skip_step=True)(0.1, 800)
    assert [e.step for e in events] == [0, 100, 200, 300, 400, 500]
    assert events[0].regrow == 0 and not events[0].skip
    assert events[3].regrow == pytest.approx(0.15)
    assert all(e.skip and e.density == 0.1 for e in events[1:])
    constant = PruneAndGrow(every=100, until=1.0, decay="none")(0.1, 300)
    assert [(e.step, e.regrow) for e in constant] == [(0, 0.0), (75, 0.3), (150, 0.3), (225, 0.3)]


def test_lottery_ticket_rounds() -> None:
    events = Rounds(per_round=0.2, rewind=0.25)(0.5, 1000)
    assert [round(e.density, 4) for e in events] == [0.8, 0.64, 0.512, 0.5]
    segment = int(1000 / (1 + 4 * 0.75))
    assert events[0].step <= segment
    assert {e.rewind for e in events} == {int(0.25 * events[0].step)}
    assert {e.replay for e in Rounds(what="rate")(0.5, 1000)} == {0}


def test_soft_pruning_holds_at_the_end_only() -> None:
    events = Repeated(times=4)(0.5, 100)
    assert [(e.step, e.hold, e.revive) for e in events] == [
        (25, False, True),
        (50, False, True),
        (75, False, True),
        (100, True, True),
    ]
    assert all(e.hold for e in Repeated(times=4, hold=True)(0.5, 100))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (OneShot, {"at": 1.1}),
        (Iterative, {"rounds": 0}),
        (Iterative, {"at": -0.1}),
        (Gradual, {"begin": 0.6, "end": 0.5}),
        (Gradual, {"every": 0}),
        (Gradual, {"power": 0.0}),
        (Gradual, {"end": 2.0}),
        (PruneAndGrow, {"drop": 0.0}),
        (PruneAndGrow, {"drop": 1.0}),
        (PruneAndGrow, {"every": 0}),
        (PruneAndGrow, {"until": 1.5}),
        (Rounds, {"per_round": 0.0}),
        (Rounds, {"rewind": 1.0}),
        (Repeated, {"times": 0}),
    ],
)
def test_what_is_no_schedule_is_refused(kind: type[Schedule], wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=kind.__name__):
        kind(**wrong)
