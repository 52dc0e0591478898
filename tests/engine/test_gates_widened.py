"""Gates over weights that live on: other shapes of theta, choices that last, reparametrizations, copies, compiling."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.gate import LearnedDensity, MaskingThreshold, PowerPropagation, Reselected, SoftBoundary, TopKast
from prunus.parts.schedule import Gradual, Marked, OneShot, Surgery
from tests.engine.looped import Looped, batch
from tests.integration import toys

STEPS = 8
LATE = OneShot(at=0.9)
RECIPES = {
    "rows": replace(methods.dst_thresholds, gate=MaskingThreshold(lr=0.5), schedule=LATE),
    "layers": replace(methods.soft_threshold_str, schedule=LATE),
    "columns": replace(methods.leap, gate=LearnedDensity(start=1.0, lr=0.3), schedule=LATE),
    "feedback": replace(methods.dpf, schedule=Marked(of=Gradual(end=0.5, every=2), until=0.9)),
    "surgery": replace(methods.dynamic_network_surgery, schedule=Surgery(every=2, until=0.9)),
    "every three": replace(methods.sr_ste, gate=Reselected(decay=0.01, every=3), schedule=LATE),
    "two choices": replace(methods.top_kast, gate=TopKast(every=3, extra=0.2), schedule=LATE),
    "roots": replace(methods.powerprop, gate=PowerPropagation(alpha=2.0), schedule=LATE),
    "boundary": replace(methods.pdp, gate=SoftBoundary(tau=1e-2, every=2), schedule=LATE),
}
EVERY = pytest.mark.parametrize("name", RECIPES)


class Run(Looped):
    def __init__(self, name: str, seed: int = 0, **changes: Any) -> None:
        budget = None if name == "every three" else prunus.Budget(0.5)
        super().__init__(replace(RECIPES[name], **changes), STEPS, seed, budget)


@EVERY
def test_every_step_can_be_resumed_from(name: str) -> None:
    """Bit by bit, though choices last for several steps and reparametrized weights are saved as they lie there."""
    whole, saved = Run(name).attach(), []
    for step in range(STEPS):
        state = {"m": whole.model.state_dict(), "o": whole.optimizer.state_dict(), "s": whole.session.state_dict()}
        saved.append(toys.pack(state))
        whole.train(step + 1)
    expected = whole.session.state_dict() | {"seconds": 0.0}
    for step, data in enumerate(saved):
        state, again = toys.unpack(data), Run(name, seed=step + 1)
        again.model.load_state_dict(state["m"])
        again.optimizer.load_state_dict(state["o"])
        again.session.load_state_dict(state["s"])
        again.attach().train(STEPS)
        assert toys.same(toys.state_of(again.model), toys.state_of(whole.model)), step
        assert toys.pack(again.session.state_dict() | {"seconds": 0.0}) == toys.pack(expected), step


@EVERY
def test_a_copy_computes_the_same_and_is_plain(name: str) -> None:
    run = Run(name).attach().train(3)
    run.model.eval()
    assert run.session.gating is not None
    twin, x = copy.deepcopy(run.model), batch(7)[0]
    assert torch.equal(twin(x), run.model(x))
    assert {n: type(m) for n, m in twin.named_modules()} == {n: type(m) for n, m in toys.network().named_modules()}
    before = twin(x)
    run.train(STEPS)
    assert torch.equal(twin(x), before) and run.session.gating is None


@EVERY
def test_the_gates_go_with_the_last_event_and_the_budget_is_met(name: str) -> None:
    run = Run(name).attach().train(STEPS)
    run.session.detach()
    result = run.session.result()
    kept, units = (
        sum(int(m.sum()) for m in result.unit_masks.values()),
        sum(m.numel() for m in result.unit_masks.values()),
    )
    assert kept / units == pytest.approx(0.5, abs=0.02)
    assert all((p.detach()[~result.masks[n]] == 0).all() for n, p in run.model.named_parameters() if n in result.masks)
    assert {n: type(m) for n, m in run.model.named_modules()} == {n: type(m) for n, m in toys.network().named_modules()}


@pytest.mark.parametrize("name", ["feedback", "surgery"])
def test_marks_leave_the_weights_alone(name: str) -> None:
    run = Run(name)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.attach()
    for step in range(1, 7):
        run.train(step)
        assert all(torch.equal(p, before[n]) for n, p in run.model.named_parameters())
        marked = {n: m for n, m in run.session.masks.items() if not m.all()}
        assert marked or step < 2
        assert run.session.marking == bool(marked) and not run.session.holding and not run.session.applied
        for n, keep in marked.items():  # what is computed with is masked all the same
            module, attribute = n.rsplit(".", 1)
            used = getattr(run.model.get_submodule(module), attribute).detach().reshape(keep.shape)
            assert (used[~keep] == 0).all() and (used[keep] != 0).all()
    run.train(STEPS)
    assert run.session.holding and all(
        torch.equal(p, before[n] * run.session.applied[n] if n in run.session.applied else before[n])
        for n, p in run.model.named_parameters()
    )


def test_a_choice_lasts_until_it_is_due() -> None:
    run = Run("two choices").attach()
    kept, wide, seen = [], [], 0
    for step in range(7):
        run.train(step)
        kept.append({n: m.clone() for n, m in run.session.gating.keep.items()})
        wide.append({n: m.clone() for n, m in run.session.gating.wide.items()})
    for step in range(1, 7):
        same = all(torch.equal(kept[step][n], kept[step - 1][n]) for n in kept[step])
        seen += not same
        assert same or step % 3 == 0
        assert all((wide[step][n] | ~kept[step][n]).all() for n in kept[step])
        shares = [
            sum(int(m.sum()) for m in c.values()) / sum(m.numel() for m in c.values()) for c in (kept[step], wide[step])
        ]
        assert shares == pytest.approx([0.5, 0.7], abs=0.02)
    assert seen


def test_a_reparametrization_is_entered_once() -> None:
    """Attaching, detaching and attaching again, and resuming, find the weights entered and leave them."""
    run = Run("roots")
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    x = batch(7)[0]
    dense = run.model.eval()(x)
    run.attach()
    inner = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    ranked = list(run.session.gating.thetas)
    assert all(torch.allclose(inner[n], before[n].sign() * before[n].abs().sqrt()) for n in ranked)
    assert all(torch.equal(inner[n], before[n]) for n in before if n not in ranked)
    assert torch.allclose(run.model.eval()(x), dense, rtol=1e-12)
    run.session.detach()
    run.session.attach(run.optimizer)
    assert all(torch.equal(p, inner[n]) for n, p in run.model.named_parameters())
    again = Run("roots", seed=3)
    again.model.load_state_dict(run.model.state_dict())
    again.session.load_state_dict(run.session.state_dict())
    again.attach()
    assert all(torch.equal(p, inner[n]) for n, p in again.model.named_parameters())
    assert torch.equal(again.model.eval()(x), run.model.eval()(x))


def test_weights_that_are_left_behind_the_gates_take_the_values_that_were_used() -> None:
    run = Run("roots", schedule=OneShot(at=1.0)).attach().train(STEPS - 1)
    inner = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.train(STEPS)
    for n, mask in run.session.applied.items():
        now = dict(run.model.named_parameters())[n]
        assert ((now == 0) == ~mask).all() and not torch.equal(now, inner[n] * mask)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the type checker of the tests, which knows no tensors of a compiler."""
    was = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["feedback", "two choices", "roots"])
def test_gates_work_under_compile(name: str) -> None:
    """The graph reads the gated weights, and reads them anew when the choice moves."""

    def run(compiles: bool) -> tuple[list[Tensor], nn.Module]:
        model = toys.network(kind=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))).double()
        data = prunus.Task(loss=toys.loss_of, example=(torch.zeros(1, 6).double(),))
        session = prunus.Session(model, RECIPES[name], data, prunus.Budget(0.5), steps=STEPS)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session.attach(optimizer)
        net = torch.compile(model, backend="eager") if compiles else model
        losses = []
        for step in range(STEPS):
            x, y = toys.batch_at(step, (6,))
            optimizer.zero_grad()
            losses.append(toys.loss_of(net, (x.double(), y)))
            losses[-1].backward()
            optimizer.step()
        return losses, model

    ours, compiled = run(True)
    theirs, plain = run(False)
    assert [float(a.detach()) for a in ours] == [float(b.detach()) for b in theirs]
    assert toys.same(toys.state_of(compiled), toys.state_of(plain))


def test_a_stored_choice_of_another_size_is_refused() -> None:
    run = Run("two choices").attach().train(2)
    state = run.session.state_dict()
    state["gates"]["wide"] = {n: t[:-1] for n, t in state["gates"]["wide"].items()}
    with pytest.raises(SpecError, match="choice"):
        Run("two choices").session.load_state_dict(state)


def test_thetas_of_other_shapes_are_checked_by_what_they_are_worth() -> None:
    run = Run("rows").attach().train(2)
    state = run.session.state_dict()
    name = next(iter(state["gates"]["thetas"]))
    assert state["gates"]["thetas"][name].shape == (run.session.masks[name].shape[0], 1)
    state["gates"]["thetas"][name] = torch.zeros(3, 7, dtype=torch.float64)
    with pytest.raises(SpecError, match="another shape"):
        Run("rows").session.load_state_dict(state)


def test_feedback_reaches_what_is_masked_and_plain_gates_do_not() -> None:
    """The gradient of a masked weight: that of the weight it would be, or none."""
    model = toys.network(kind=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))).double()
    example = prunus.Task(loss=toys.loss_of, example=(torch.zeros(1, 6).double(),))
    found = replace(methods.dpf, schedule=Marked(of=OneShot(at=0.0), until=1.0))
    session = prunus.Session(model, found, example, prunus.Budget(0.5), steps=4)
    session.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = toys.batch_at(0, (6,))
    toys.loss_of(model, (x.double(), y)).backward()
    used = {n: model.get_submodule(n[0]).weight.detach().clone().requires_grad_() for n in session.masks}
    out = torch.relu(x.double() @ used["0.weight"].T + model[0].bias) @ used["2.weight"].T + model[2].bias
    expected = torch.autograd.grad(nn.functional.cross_entropy(out, y), list(used.values()))
    for (name, keep), g in zip(session.masks.items(), expected, strict=True):
        grad = session.parameters[name].grad
        assert grad is not None and torch.allclose(grad, g, rtol=1e-10) and (grad[~keep] != 0).any()
