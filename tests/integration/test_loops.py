"""`session.attach(optimizer)` is the one line that a loop needs, however it steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.core.errors import SpecError
from prunus.parts.schedule import Gradual, OneShot
from tests.integration import toys

HALF = prunus.Budget(0.5)


def gradual(every: int = 2) -> prunus.Recipe:
    return replace(prunus.methods.get("gradual_magnitude"), schedule=Gradual(every=every, end=1.0))


def test_bare_loop_equals_prune() -> None:
    steps = 8
    result = prunus.prune(
        toys.network(),
        prunus.Task(loss=toys.loss_of, train=[toys.batch_at(i) for i in range(steps)]),
        gradual(),
        sparsity=0.5,
        steps=steps,
        optimizer=toys.sgd,
    )
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, gradual(), budget=HALF, steps=steps).attach(optimizer)
    toys.train(session, optimizer, 0, steps)
    assert session.step == steps
    assert toys.same(result.masks, session.result().masks)
    assert toys.same(toys.state_of(result.model), toys.state_of(model))


def test_accumulation_counts_optimizer_steps() -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, gradual(), budget=HALF, steps=4).attach(optimizer)
    for step in range(4):
        assert session.step == step
        for part in range(3):
            (toys.loss_of(model, toys.batch_at(3 * step + part)) / 3).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    assert [h["step"] for h in session.history] == [e.step for e in session.events]
    toys.zeros_hold(session)


def test_penalty_is_added_once_per_step_not_per_backward() -> None:
    model = toys.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = prunus.Session(model, "network_slimming", toys.task(), HALF, steps=4).attach(optimizer)
    for part in range(3):
        toys.loss_of(model, toys.batch_at(part)).backward()
    before = model.norm.weight.grad.clone()
    optimizer.step()
    strength = session.recipe.penalty.strength
    assert torch.equal(model.norm.weight.grad, before + strength * model.norm.weight.detach().sign())


@pytest.mark.parametrize("by_name", [True, False])
def test_closure_is_masked_once_it_has_run(by_name: bool) -> None:
    def run(closures: bool) -> tuple[prunus.Session, nn.Module]:
        model = toys.network()
        optimizer = toys.sgd(model.parameters())
        session = prunus.Session(model, "rigl", toys.task(), HALF, steps=8).attach(optimizer)
        model.train()
        for step in range(8):

            def closure(step: int = step) -> Any:
                optimizer.zero_grad()
                loss = toys.loss_of(model, toys.batch_at(step))
                loss.backward()
                return loss

            if not closures:
                closure()
                optimizer.step()
            elif by_name:
                assert optimizer.step(closure=closure) > 0
            else:
                assert optimizer.step(closure) > 0
            toys.zeros_hold(session)
        return session, model

    with_closures, one = run(True)
    plainly, other = run(False)
    assert with_closures.history == plainly.history
    assert toys.same(with_closures.masks, plainly.masks)
    assert toys.same(toys.state_of(one), toys.state_of(other))


def test_lbfgs_evaluates_many_times_in_one_step() -> None:
    model = toys.network(kind=toys.mlp)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn="strong_wolfe")
    session = prunus.Session(model, gradual(1), budget=HALF, steps=4).attach(optimizer)
    calls = 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = toys.loss_of(model, toys.batch_at(0, (6,)))
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(4)]
    assert calls > 4 and session.step == 4
    toys.zeros_hold(session)
    assert losses[1] < losses[0]  # pruning nearly nothing yet, it still descends


def test_parameter_groups_and_frozen_parameters() -> None:
    model = toys.network()
    model.stem.weight.requires_grad_(False)
    fast = [p for n, p in model.named_parameters() if n.startswith("head")]
    slow = [p for n, p in model.named_parameters() if not n.startswith("head") and p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": fast, "lr": 0.1}, {"params": slow, "lr": 0.01}], weight_decay=0.1)
    session = prunus.Session(model, "magnitude", budget=HALF, steps=4).attach(optimizer)
    stem = model.stem.weight.detach().clone()
    toys.train(session, optimizer, 0, 4)
    toys.zeros_hold(session)
    assert torch.equal(model.stem.weight, stem) and session.step == 4


def test_several_optimizers_step_as_one() -> None:
    model = toys.network()
    one = torch.optim.SGD([p for n, p in model.named_parameters() if n.startswith("stem")], lr=0.1, momentum=0.9)
    other = torch.optim.Adam([p for n, p in model.named_parameters() if not n.startswith("stem")], lr=0.01)
    session = prunus.Session(model, "rigl", toys.task(), prunus.Budget(0.2), steps=8).attach([one, other])
    counts = toys.kept(session)
    for step in range(8):
        toys.loss_of(model, toys.batch_at(step)).backward()
        one.step()
        assert session.step == step
        other.step()
        assert session.step == step + 1
        one.zero_grad()
        other.zero_grad()
        toys.zeros_hold(session)
        assert toys.kept(session) == counts
    assert any(h.get("regrow") for h in session.history)
    # Both optimizers' gradients were there to grow by: a mask of each moved.
    start = prunus.Session(toys.network(), "rigl", toys.task(), prunus.Budget(0.2), steps=8)
    start.start()
    assert all(not torch.equal(start.masks[n], session.masks[n]) for n in ("stem.weight", "inner.weight"))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model(backend: str) -> None:
    model = toys.network()
    compiled = torch.compile(model, backend=backend)
    optimizer = toys.sgd(compiled.parameters())
    session = prunus.Session(compiled, "rigl", toys.task(), HALF, steps=4).attach(optimizer)
    compiled.train()
    for step in range(4):
        optimizer.zero_grad()
        toys.loss_of(compiled, toys.batch_at(step)).backward()
        optimizer.step()
    toys.zeros_hold(session)
    assert session.model is model and set(session.masks) <= set(dict(model.named_parameters()))
    assert session.step == 4 and len(session.history) == len(session.events)


def test_detach_lets_go() -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    session = prunus.Session(model, "magnitude", budget=HALF).attach(optimizer)
    with pytest.raises(SpecError, match="attached already"):
        session.attach(optimizer)
    toys.zeros_hold(session)
    session.detach()
    toys.train(session, optimizer, 0, 1)
    gone = ~session.masks["inner.weight"].reshape(model.inner.weight.shape)
    assert model.inner.weight[gone].any()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_moved_model_is_followed() -> None:
    model = toys.network()
    session = prunus.Session(model, "magnitude", budget=HALF)
    model.double()
    optimizer = toys.sgd(model.parameters())
    session.attach(optimizer)
    x, y = toys.batch_at(0)
    toys.loss_of(model, (x.double(), y)).backward()
    optimizer.step()
    toys.zeros_hold(session)


class Logged(torch.optim.AdamW):
    """What users write around an optimizer; torch runs the hooks of both `step`s."""

    fail = False

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if self.fail:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("closures", [True, False])
def test_a_step_built_on_another_counts_once(closures: bool) -> None:
    torch.optim.AdamW(toys.network().parameters())  # now both classes run hooks
    torch.optim.Adam(toys.network().parameters())
    model = toys.network()
    optimizer = Logged(model.parameters(), lr=0.01)
    session = prunus.Session(model, gradual(), budget=HALF, steps=8).attach(optimizer)
    losses: list[Any] = []

    def closure() -> Any:
        optimizer.zero_grad()
        losses.append(toys.loss_of(model, toys.batch_at(len(losses))))
        losses[-1].backward()
        return losses[-1]

    for step in range(8):
        optimizer.fail = step == 3
        if step == 3:
            with pytest.raises(KeyboardInterrupt):  # a step that failed is none
                optimizer.step(closure)
            optimizer.fail = False
        if closures:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        assert session.step == step + 1
    toys.zeros_hold(session)
    assert len(losses) == 9 and len(session.history) == len(session.events)


class Silent(torch.optim.Optimizer):
    """A wrapper that forgets to call Optimizer.__init__, so that nobody hears of its steps."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def test_what_cannot_be_attached_is_refused() -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    with pytest.raises(SpecError, match="step hooks, and str is none"):
        prunus.Session(model, "magnitude", budget=HALF).attach("adam")
    with pytest.raises(SpecError, match="Silent is none"):
        prunus.Session(model, "magnitude", budget=HALF).attach(Silent(optimizer))
    with pytest.raises(SpecError, match="empty list"):
        prunus.Session(model, "magnitude", budget=HALF).attach([])
    with pytest.raises(SpecError, match="another copy"):
        prunus.Session(toys.network(), "magnitude", budget=HALF).attach(optimizer)
    with pytest.raises(SpecError, match="not over: 0 of 4 steps"):
        prunus.Session(model, gradual(), budget=HALF, steps=4).attach(optimizer).result()


def test_a_failed_start_leaves_no_hook() -> None:
    model = toys.network()
    optimizer = toys.sgd(model.parameters())
    broken = prunus.Task(loss=lambda m, b: toys.loss_of(m, b) * float("nan"), calib=[toys.batch_at(0)])
    session = prunus.Session(model, replace(prunus.methods.get("snip"), schedule=OneShot()), broken, HALF)
    before = toys.state_of(model)
    with pytest.raises(prunus.core.errors.WeightsError, match="NaN"):
        session.attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks and toys.same(before, toys.state_of(model))
