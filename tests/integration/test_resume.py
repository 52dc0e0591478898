"""A run that is interrupted anywhere, and resumed, is the run that was not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import prunus
from prunus.core.errors import SpecError
from tests.integration import runs, toys


def storable(value: Any) -> None:
    """Tensors and what JSON gives back as it was; nothing that needs pickle."""
    if isinstance(value, Mapping):
        assert type(value) is dict and all(type(k) is str for k in value)
        for part in value.values():
            storable(part)
    elif isinstance(value, list):
        for part in value:
            storable(part)
    elif type(value) is not Tensor:
        assert value is None or type(value) in (str, int, float, bool), type(value)
        assert json.loads(json.dumps(value, allow_nan=False)) == value


@pytest.mark.parametrize("name", runs.RECIPES)
def test_every_step_can_be_resumed_from(name: str) -> None:
    whole = runs.Run(name).start()
    saved = []
    for step in range(runs.STEPS):
        saved.append(whole.save())
        storable(whole.session.state_dict())
        whole.train(step + 1)
    expected = toys.pack(whole.outcome())
    assert whole.session.fired == len(whole.session.events) > 0
    for step, data in enumerate(saved):
        # Other weights to begin with: everything must come from the checkpoint.
        resumed = runs.Run(name, seed=step + 1).load(data).start()
        assert resumed.session.step == step
        assert toys.pack(resumed.train(runs.STEPS).outcome()) == expected, f"resumed at step {step}"
    assert toys.same(whole.session.result().masks, resumed.session.result().masks)


def test_resuming_keeps_the_time_that_was_spent() -> None:
    run = runs.Run("rigl").start().train(runs.STEPS)
    state = run.session.state_dict()
    state["seconds"] = 1000.0
    again = runs.Run("rigl")
    again.session.load_state_dict(state)
    assert 1000.0 < again.session.result().cost["seconds"] < 1100.0


# What is refused, and that nothing is changed by it


def untouched(session: prunus.Session, state: Any, message: str) -> None:
    model, own = toys.state_of(session.model), session.state_dict()
    with pytest.raises(SpecError, match=message):
        session.load_state_dict(state)
    after = session.state_dict()
    del own["seconds"], after["seconds"]
    assert toys.pack(own) == toys.pack(after) and toys.same(model, toys.state_of(session.model))


def foreign(**changes: Any) -> prunus.Session:
    settings: dict[str, Any] = {
        "model": toys.network(),
        "recipe": runs.RECIPES["lth"],
        "task": toys.task(),
        "budget": prunus.Budget(0.4),
        "steps": runs.STEPS,
        "seed": 0,
    }
    return prunus.Session(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": runs.RECIPES["gradual_magnitude"]}, "its recipe is"),
        ({"recipe": replace(runs.RECIPES["lth"], schedule=prunus.parts.schedule.Rounds(per_round=0.4))}, "recipe is"),
        ({"budget": prunus.Budget(0.3)}, "budget is .*0.4.* here .*0.3"),
        ({"steps": runs.STEPS + 1}, "steps is 15, here 16"),
        ({"seed": 1}, "seed is 0, here 1"),
        ({"model": toys.network(kind=lambda: toys.Conv(9))}, "groups is"),
        ({"model": toys.network(kind=toys.mlp)}, "groups is"),
    ],
)
def test_the_state_of_another_session_is_refused(changes: dict[str, Any], message: str) -> None:
    state = foreign().state_dict()
    untouched(foreign(**changes), state, message)


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("masks"), "it lacks masks"),
        (lambda s: s.update(format=99), "format 99"),
        (lambda s: s["masks"].pop("stem.weight"), "mask of 'stem.weight' is missing"),
        (lambda s: s["masks"].update({"stem.weight": torch.zeros(3, dtype=torch.uint8)}), "another size"),
        (lambda s: s.update(generator=torch.zeros(3)), "generator"),
        (lambda s: s.update(fired=99), "fit no run"),
        (lambda s: s.update(step=0), "falls on step"),
        (lambda s: s["weights"].clear(), "snapshot of step 2.*is missing"),
        (lambda s: s["weights"]["2"].pop("norm.running_mean"), "lacks 'norm.running_mean'"),
        (lambda s: s.update(pending=7), "learning rates of step 7"),
    ],
)
def test_a_damaged_state_is_refused(damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    first = runs.Run("lth").start()
    first.train(first.session.events[0].step)
    state = copy.deepcopy(first.session.state_dict())
    untouched(first.session, {**copy.deepcopy(state), "format": 2}, "format 2")
    foreign().load_state_dict(copy.deepcopy(state))  # whole, it is accepted
    damage(state)
    untouched(foreign(), state, message)


def test_what_is_no_state_is_refused() -> None:
    untouched(foreign(), {}, "it lacks format, recipe")
