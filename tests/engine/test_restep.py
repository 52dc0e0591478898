"""Training that turns out longer or shorter: events to come are laid over what is left, and nothing else changes."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

import pytest

import prunus
from prunus.core.errors import SpecError
from prunus.core.events import Event
from prunus.engine.restep import moved, relaid
from tests.integration import runs, toys

AT = 6  # where the number of steps changes; 15 were planned


def test_places_are_the_same_share_of_what_is_left() -> None:
    """Against fractions, over every run of up to six steps."""
    for old in range(7):
        for at in range(old + 1):
            for new in range(at + (old > at), 10):
                events = [Event(s, 1 - s / 20, rewind=max(0, s - 2)) for s in range(old + 1)]
                found = moved(events, at, old, new)

                def place(s: int, at: int = at, old: int = old, new: int = new) -> int:
                    return s if s <= at else at + ceil(Fraction(s - at, old - at) * (new - at))

                assert [e.step for e in found] == [place(e.step) for e in events]
                assert [e.rewind for e in found] == [place(e.rewind or 0) for e in events]
                assert [e.density for e in found] == [e.density for e in events]
                assert [e.step for e in found] == sorted(e.step for e in found)
                assert all(at < f.step <= new if e.step > at else f == e for e, f in zip(events, found, strict=True))
                assert found[-1].step == (new if old > at else old)
                if new == old:
                    assert found == tuple(events)


def test_one_change_after_another() -> None:
    events = (Event(4, 0.5), Event(8, 0.3, replay=6))
    once, twice = relaid(events, 8, [(2, 14)]), relaid(events, 8, [(2, 14), (3, 25)])
    assert once == (Event(6, 0.5), Event(14, 0.3, replay=10))
    assert twice == (Event(9, 0.5), Event(25, 0.3, replay=17))


@pytest.mark.parametrize("name", ["gradual_magnitude", "rigl", "lth", "lr_rewinding"])
@pytest.mark.parametrize("steps", [9, 22])
def test_a_run_comes_to_the_end_that_it_would_have_come_to(name: str, steps: int) -> None:
    run = runs.Run(name).start().train(AT)
    plan, fired, history = run.session.events, run.session.fired, list(run.session.history)
    assert run.session.restep(steps) is run.session
    assert run.session.events[:fired] == plan[:fired] and run.session.history == history
    assert [e.density for e in run.session.events] == [e.density for e in plan]
    run.train(steps)
    assert run.session.step == run.session.steps == steps and run.session.fired == len(plan)
    assert [h["step"] for h in run.session.history] == [e.step for e in run.session.events]
    straight = runs.Run(name).start().train(runs.STEPS)
    assert [h["kept"] for h in run.session.history] == [h["kept"] for h in straight.session.history]
    toys.zeros_hold(run.session)
    run.session.result()


@pytest.mark.parametrize("name", ["rigl", "lth"])
def test_every_step_after_a_change_can_be_resumed_from(name: str) -> None:
    last = 20
    whole = runs.Run(name).start().train(2)
    whole.session.restep(12)
    whole.train(AT).session.restep(last)
    saved = []
    for step in range(AT, last):
        saved.append(whole.save())
        whole.train(step + 1)
    expected = toys.pack(whole.outcome())
    for step, data in enumerate(saved, AT):
        resumed = runs.Run(name, seed=step + 1).load(data).start()  # made with the steps that were planned at first
        assert (resumed.session.step, resumed.session.steps) == (step, last)
        assert resumed.session.events == whole.session.events and resumed.session.horizon == whole.session.horizon
        assert toys.pack(resumed.train(last).outcome()) == expected, f"resumed at step {step}"


def test_before_the_start_and_after_the_end() -> None:
    run = runs.Run("gradual_magnitude")
    run.session.restep(10)
    run.start().train(10)
    done = run.session.history
    assert [h["step"] for h in done] == [e.step for e in run.session.events] and run.session.events[-1].step <= 10
    run.session.restep(14)  # nothing is to come: masks are kept for longer
    run.train(14)
    assert run.session.history == done and run.session.steps == 14
    toys.zeros_hold(run.session)


def test_gates_anneal_over_the_steps_that_there_are() -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, "continuous_sparsification", toys.task(), prunus.Budget(0.5), steps=8)
    session.attach(optimizer)
    toys.train(session, optimizer, 0, 4)
    session.restep(6)
    toys.train(session, optimizer, 4, 6)
    assert session.gating is None and session.fired == len(session.events)
    toys.zeros_hold(session)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (AT - 1, "6 steps have been made already"),
        (AT, "events are still to come, and need one more step"),
        (True, "a whole number"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(steps: Any, message: str) -> None:
    run = runs.Run("lth").start().train(AT)
    before, events = toys.pack(run.outcome()), run.session.events
    with pytest.raises(SpecError, match=message):
        run.session.restep(steps)
    assert toys.pack(run.outcome()) == before and run.session.events == events and run.session.steps == runs.STEPS


@pytest.mark.parametrize("damage", [None, [[1]], [[3, 2]], [[5, 9], [4, 9]], [[AT + 9, 30]], [["1", 9]], [[True, 9]]])
def test_a_damaged_record_is_refused(damage: Any) -> None:
    state = runs.Run("lth").start().train(AT).session.state_dict()
    runs.Run("lth").session.load_state_dict(state)
    with pytest.raises(SpecError, match="no list of what was changed"):
        runs.Run("lth").session.load_state_dict({**state, "resteps": damage})
