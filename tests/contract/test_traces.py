"""No recipe leaves a trace: not in the caller's model, not in the global generators, not after an exception."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Recipe
from prunus.core.errors import PrunusError
from prunus.parts.schedule import OneShot
from tests.contract.models import CASES
from tests.contract.runs import (
    PAIRS,
    STEPS,
    asked,
    difference,
    disturbed,
    make_optimizer,
    one_shot,
    quiet,
    ready,
    recipe,
    rng,
    same,
    state,
)

EVERY = pytest.mark.parametrize(("name", "network"), PAIRS)


@EVERY
def test_a_second_run_leaves_the_callers_model_alone_and_gives_the_same_masks(name: str, network: str) -> None:
    """Deterministic, too: from JSON, with other flags and modes, and whatever the global generators say."""
    case = CASES[network]
    found = Recipe.from_dict(json.loads(json.dumps(recipe(name).to_dict())))
    model = disturbed(case)
    torch.manual_seed(4711)
    random.seed(4711)
    np.random.seed(4711)  # noqa: NPY002 - the state that must not matter
    before, numbers = state(model), rng()
    with quiet():
        result = prunus.prune(model, case.task(), found, **asked(found))
    assert same(result.masks, one_shot(name, network).masks)
    assert difference(before, state(model)) == []
    assert rng() == numbers
    # The copy, too, has its flags and modes as the user's model has them, and nothing hangs on it.
    after = state(result.model)
    if found.prepare is not None:
        before = state(ready(found, disturbed(case), case))
    assert difference({k: before[k] for k in ("training", "requires_grad", "attributes")}, after) == []
    assert all(not hooks for (_, kind), hooks in after["hooks"].items() if "hook" in kind)


@EVERY
def test_score_leaves_the_model_alone(name: str, network: str) -> None:
    case = CASES[network]
    model = disturbed(case)
    before, numbers = state(model), rng()
    scores = prunus.score(model, case.task(), recipe(name))
    assert difference(before, state(model)) == []
    assert rng() == numbers
    assert all(not s.requires_grad and not torch.isnan(s).any() for s in scores.values())


class Injected(Exception):
    """Raised from inside the user's model in the middle of a recipe's work."""


@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.parametrize(("name", "network"), [p for p in PAIRS if p[1] in ("cnn", "decoder")])
def test_an_exception_in_the_users_model_leaves_no_trace(name: str, network: str, calls: int) -> None:
    """The model breaks at its first, second or fourth run; a recipe that never gets there must end as usual."""
    case, found = CASES[network], recipe(name)
    model = disturbed(case)
    left = [calls]

    def fail(module: nn.Module, inputs: Any, output: Tensor) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Injected("out of the user's own code")

    handle = model.register_forward_hook(fail)
    before, numbers = state(model), rng()
    try:
        prunus.score(model, case.task(), found)
    except (Injected, PrunusError):
        assert left[0] < 0
    else:
        assert left[0] >= 0
    assert difference(before, state(model)) == []
    assert rng() == numbers
    handle.remove()


@pytest.mark.parametrize("name", [n for n, m in PAIRS if m == "cnn"])
def test_a_session_takes_its_hooks_off_again(name: str) -> None:
    case, found = CASES["cnn"], recipe(name)
    model = ready(found, case.model(), case)
    opt = make_optimizer("sgd", model)
    before = state(model)
    with quiet():
        session = prunus.Session(model, found, case.task(), **asked(found), steps=STEPS).attach(opt)
    session.detach()
    assert not opt._optimizer_step_pre_hooks and not opt._optimizer_step_post_hooks
    after = state(model)
    assert difference({k: v for k, v in before.items() if k != "state"}, after) == []


# Distillation of outputs alone never asks for the loss.
@pytest.mark.parametrize("name", [n for n, m in PAIRS if m == "mlp" and getattr(recipe(n).recover, "weight", 0) != 1])
def test_training_that_breaks_leaves_the_callers_model_alone(name: str) -> None:
    case, found = CASES["mlp"], recipe(name)
    model = disturbed(case)
    model.requires_grad_(True)
    before, numbers = state(model), rng()
    calls = [0]

    def loss(network: nn.Module, batch: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 40:
            raise Injected("in the middle of training")
        return case.loss(network, batch)

    def outputs(network: nn.Module, batch: Any) -> Any:
        loss(network, batch)  # which a recipe that trains without labels does not ask for
        return network(batch[0])

    unlabelled = found.recover is not None and found.recover.throughout and found.recover.reads != "labels"
    given = case.task(forward=outputs, example=(case.batches(1)[0][0],)) if unlabelled else case.task(loss=loss)
    with pytest.raises(Injected), quiet():
        prunus.prune(model, given, replace(found, schedule=OneShot()), **asked(found), steps=50)
    assert calls[0] == 40
    assert difference(before, state(model)) == []
    assert rng() == numbers
