"""Every recipe in a training loop: events on time, masks that shrink, zeros that stay, runs that resume."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import prunus
from prunus.core.errors import PrunusWarning
from tests.contract.models import CASES
from tests.contract.runs import (
    NAMES,
    NO_STRUCTURE,
    PAIRS,
    STEPS,
    asked,
    fixed,
    make_optimizer,
    quiet,
    ready,
    recipe,
    revives,
    same,
    train_step,
    trained,
    training_model,
)

RUNS = [(r, m) for r, m in PAIRS if m in ("cnn", "decoder")]
EVERY = pytest.mark.parametrize(("name", "network"), RUNS)


@EVERY
def test_masks_only_shrink_unless_the_recipe_revives(name: str, network: str) -> None:
    run = trained(name, network)
    for old, new in zip(run.masks, run.masks[1:], strict=False):
        grown = any((new[n] & ~old[n]).any() for n in old)
        assert not grown or revives(run.session.events)
    regrown = any(e.regrow for e in run.session.events)
    moved = any((b[n] & ~a[n]).any() for a, b in zip(run.masks, run.masks[1:], strict=False) for n in a)
    assert moved or not regrown  # and what is called prune-and-grow does grow


@pytest.mark.parametrize(
    ("name", "network", "optimizer"),
    [(r, m, "sgd") for r, m in RUNS] + [(r, m, "adamw") for r, m in RUNS if m == "cnn"],
)
def test_zero_stays_zero_under_momentum_and_weight_decay(name: str, network: str, optimizer: str) -> None:
    run = trained(name, network, optimizer)
    for step, (escaped, holding) in enumerate(zip(run.escaped, run.holding, strict=True)):
        assert escaped == 0 or not holding, f"{escaped} pruned weights moved at step {step}"
    assert run.holding[-1] and any((~m).any() for m in run.masks[-1].values())


@EVERY
def test_the_events_happen_when_the_schedule_says(name: str, network: str) -> None:
    session = trained(name, network).session
    assert session.fired == len(session.events) and session.step == STEPS
    if any(e.settle is not None for e in session.events):  # of these one is carried out, and those before it are tried
        tried = session.events[: len(session.history)]
        assert [h["step"] for h in session.history] == [e.step for e in tried]
        assert ["kept" in h for h in session.history] == [False] * (len(tried) - 1) + [True]
        return
    assert [h["step"] for h in session.history] == [e.step for e in session.events]
    for event, record in zip(session.events, session.history, strict=True):
        assert record["asked"] == event.density
        assert record["density"] == pytest.approx(record["kept"] / record["units"])
    for event, before, after in zip(session.events[1:], session.history, session.history[1:], strict=False):
        if event.regrow:
            assert before["kept"] == after["kept"]  # as many regrown as dropped


@EVERY
def test_a_run_that_was_interrupted_goes_on_bit_by_bit(name: str, network: str) -> None:
    case, found = CASES[network], recipe(name)
    half = 11
    with quiet():
        model = ready(found, training_model(case), case)
        opt = make_optimizer("sgd", model)
        session = prunus.Session(model, found, case.task(), **asked(found), steps=STEPS).attach(opt)
        for step in range(half):
            train_step(case, model, opt, step)
        saved = copy.deepcopy((model.state_dict(), opt.state_dict(), session.state_dict()))
        session.detach()

        again = ready(found, training_model(case), case)
        opt = make_optimizer("sgd", again)
        resumed = prunus.Session(again, found, case.task(), **asked(found), steps=STEPS)
        again.load_state_dict(saved[0])
        opt.load_state_dict(saved[1])
        resumed.load_state_dict(saved[2])
        resumed.attach(opt)
        for step in range(half, STEPS):
            train_step(case, again, opt, step)
        resumed.detach()
    whole = trained(name, network).session
    assert same(resumed.masks, whole.masks)
    assert same(dict(again.named_parameters()), dict(whole.model.named_parameters()))
    assert resumed.history == whole.history


@pytest.mark.parametrize(
    "name", [n for n in NAMES if (m := prunus.methods.get(n)).grow is not None and m.scores_from == "nothing"]
)
def test_growth_goes_by_the_gradients_of_the_loop_and_needs_no_task(name: str) -> None:
    case = CASES["cnn"]
    model = training_model(case)
    opt = make_optimizer("sgd", model)
    task = prunus.Task(example=(case.batches(1)[0][0],))  # which only groups of coupled units look at
    session = prunus.Session(model, recipe(name), task, **asked(recipe(name)), steps=STEPS).attach(opt)
    for step in range(STEPS):
        train_step(case, model, opt, step)
    session.detach()
    assert same(session.masks, trained(name, "cnn").session.masks)


FITTING = {n: next((m for m in ("cnn", "vit", "moe") if (n, m) not in NO_STRUCTURE), "") for n in NAMES}


@pytest.mark.parametrize("name", [n for n in NAMES if FITTING[n]])
def test_a_recipe_that_trains_says_so_when_it_is_given_no_steps(name: str) -> None:
    case, found = CASES[FITTING[name]], prunus.methods.get(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prunus.prune(case.model(), case.task(), recipe(name), **asked(found))
    said = [w for w in caught if issubclass(w.category, PrunusWarning) and "steps=" in str(w.message)]
    assert bool(said) == found.trains
    assert all(name in str(w.message) for w in said)


@pytest.mark.parametrize("name", [n for n in NAMES if prunus.methods.get(n).trains and (n, "cnn") not in NO_STRUCTURE])
def test_prune_trains_a_copy_and_ends_sparse(name: str) -> None:
    case, found = CASES["cnn"], recipe(name)
    model = case.model()
    with quiet():
        result = prunus.prune(model, case.task(), found, **asked(found), steps=STEPS)
    named = dict(result.model.named_parameters())
    assert all((named[n][~m] == 0).all() for n, m in result.masks.items())
    assert result.sparsity >= 0.5 if fixed(found) else result.sparsity > 0.5
    assert result.cost["steps"] == STEPS
    dense = ready(found, case.model(), case).named_parameters()
    assert any(not torch.equal(named[n], p) for n, p in dense)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), case.model().parameters(), strict=True))
