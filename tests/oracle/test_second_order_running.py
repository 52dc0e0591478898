"""What is gathered while training, re-derived by a loop of its own beside the session."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import (
    ConfidenceBound,
    MagnitudeAndGradient,
    MomentumTaylor,
    MomentumTaylorGate,
    MovementScore,
    ReciprocalSensitivity,
    Sensitivity,
)
from prunus.parts.granularity import Channel, Element
from prunus.parts.schedule import Gradual, OneShot
from tests.oracle.second_order_nets import batches, build, cross_entropy, scores, task_of, weights

STEPS = 8
CRITERIA = {
    "movement": (MovementScore(), Element()),
    "platon": (ConfidenceBound(beta1=0.7, beta2=0.8), Element()),
    "taylor": (MomentumTaylor(momentum=0.6), Channel()),
    "gate": (MomentumTaylorGate(momentum=0.6), Channel()),
}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def theirs(kind: str, steps: list[tuple[dict[str, Tensor], dict[str, Tensor]]], model: nn.Module) -> dict[str, Tensor]:
    """The papers' sums, from the weights and gradients of every step."""
    if kind == "movement":
        return {n: -sum(w[n] * g[n] for w, g in steps) for n in weights(model)}
    if kind == "platon":
        out = {}
        for n, start in weights(model).items():
            mean, wild = torch.zeros_like(start), torch.zeros_like(start)
            for w, g in steps:
                now = (w[n] * g[n]).abs()
                mean = 0.7 * mean + 0.3 * now
                wild = 0.8 * wild + 0.2 * (now - mean).abs()
            out[n] = mean * wild
        return out
    out = {}
    for group in Channel()(model, (batches("conv")[0][0],)):
        members = group.with_role("out") if kind == "taylor" else group.with_role("scale", "shift")
        if not members:
            continue
        average: Tensor | None = None
        for w, g in steps:
            effect = torch.zeros(group.units, dtype=torch.float64)
            for member in members:
                products = (w[member.param] * g[member.param]).movedim(member.dim or 0, 0)
                rows = products.reshape(len(products), -1).sum(1)
                for unit, at in enumerate(member.positions(group.units)):
                    effect[unit] += rows[at].sum()
            average = effect**2 if average is None else 0.6 * average + 0.4 * effect**2
        assert average is not None
        out[group.name] = average
    return out


def recipe(kind: str) -> prunus.Recipe:
    criterion, granularity = CRITERIA[kind]
    return replace(methods.platon, criterion=criterion, granularity=granularity, schedule=OneShot(at=1.0))


def without_return() -> prunus.Recipe:
    """Movement pruning as it was before its gates: what is pruned stays zero."""
    gradual = Gradual(begin=0.1, end=0.8, every=10)
    return replace(methods.movement, criterion=MovementScore(), gate=None, schedule=gradual)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    seen = []
    data = batches("conv", 4)
    for step in range(first, last):
        optimizer.zero_grad()
        cross_entropy(model, data[step % 4]).backward()
        seen.append(({n: p.detach().clone() for n, p in model.named_parameters()}, gradients(model)))
        optimizer.step()
    return seen


@pytest.mark.parametrize("kind", CRITERIA)
def test_a_session_gathers_what_the_paper_sums(kind: str) -> None:
    model, plain = build("conv"), build("conv")
    task = task_of(batches("conv"))
    session = prunus.Session(model, recipe(kind), task, sparsity=0.5, steps=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    session.attach(optimizer)
    steps = train(model, optimizer, 0, STEPS)
    # The same run without a session: until the event nothing may have been touched.
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), 0, STEPS)
    expected = theirs(kind, steps, model)
    ranked = {n: s for n, s in expected.items() if n in session.masks}
    kept = {n: session.masks[n].reshape(s.shape) for n, s in ranked.items()}
    for name, mask in kept.items():
        if name in session.skipped:
            continue
        assert float(ranked[name][mask].min()) >= float(ranked[name][~mask].max() if bool((~mask).any()) else -1e300)
    for n, p in plain.named_parameters():
        alive = model.get_parameter(n).detach() != 0
        assert torch.equal(p.detach()[alive], model.get_parameter(n).detach()[alive])


@pytest.mark.parametrize("kind", CRITERIA)
def test_without_training_the_calibration_batches_are_the_steps(kind: str) -> None:
    model, data = build("conv"), batches("conv", 3)
    steps = []
    for batch in data:
        model.zero_grad()
        cross_entropy(model, batch).backward()
        steps.append(({n: p.detach().clone() for n, p in model.named_parameters()}, gradients(model)))
    criterion, granularity = CRITERIA[kind]
    ours = scores(model, task_of(data), criterion, granularity)
    for name, value in theirs(kind, steps, model).items():
        torch.testing.assert_close(ours[name].reshape(value.shape), value, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", CRITERIA)
def test_a_resumed_run_is_the_same_bit_for_bit(kind: str, tmp_path: Any) -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer, prunus.Session]:
        model = build("conv")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, prunus.Session(model, recipe(kind), task, sparsity=0.5, steps=STEPS, seed=3)

    task = task_of(batches("conv"))
    whole, optimizer, session = begin()
    session.attach(optimizer)
    train(whole, optimizer, 0, STEPS)

    half, opt, first = begin()
    first.attach(opt)
    train(half, opt, 0, STEPS // 2)
    saved = {"model": half.state_dict(), "optimizer": opt.state_dict(), "session": first.state_dict()}
    torch.save(copy.deepcopy(saved), tmp_path / "half.pt")
    read = torch.load(tmp_path / "half.pt", weights_only=True)

    again, opt, second = begin()
    again.load_state_dict(read["model"])
    opt.load_state_dict(read["optimizer"])
    second.load_state_dict(read["session"])
    second.attach(opt)
    train(again, opt, STEPS // 2, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(m, second.masks[n]) for n, m in session.masks.items())
    key = next(iter(session.running))
    assert set(session.running[key]) == set(second.running[key])
    assert all(torch.equal(t, second.running[key][n]) for n, t in session.running[key].items())


def test_pruned_weights_move_no_further() -> None:
    """A weight that is zero has w dL/dw = 0, whatever its gradient."""
    model = build("conv")
    session = prunus.Session(model, without_return(), task_of(batches("conv")), sparsity=0.6, steps=40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session.attach(optimizer)
    train(model, optimizer, 0, 40)
    assert len(session.history) > 2 and session.history[-1]["density"] == pytest.approx(0.4, abs=0.02)
    gone = {n: ~m.reshape(model.get_parameter(n).shape) for n, m in session.masks.items()}
    before = {n: t.clone() for n, t in session.running["movement"].items()}
    train(model, optimizer, 40, 44)
    for n, at in gone.items():
        assert torch.equal(session.running["movement"][n][at], before[n][at])
        assert not torch.equal(session.running["movement"][n][~at], before[n][~at])


def test_platon_lets_pruned_weights_come_back_until_the_last_event() -> None:
    model = build("conv")
    session = prunus.Session(model, "platon", task_of(batches("conv")), sparsity=0.6, steps=40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    session.attach(optimizer)
    seen, returned = {n: m.clone() for n, m in session.masks.items()}, 0
    for step in range(40):
        train(model, optimizer, step, step + 1)
        returned += sum(int((session.masks[n] & ~m).sum()) for n, m in seen.items())
        seen = {n: m.clone() for n, m in session.masks.items()}
    assert returned > 0 and session.holding
    assert all(int((model.get_parameter(n).flatten()[~m.flatten()] != 0).sum()) == 0 for n, m in seen.items())


def test_a_soft_path_has_the_same_densities_and_holds_at_its_end() -> None:
    hard, soft = (Gradual(begin=0.1, end=0.7, every=10, soft=soft)(0.3, 100) for soft in (False, True))
    assert [(e.step, e.density) for e in hard] == [(e.step, e.density) for e in soft]
    assert [e.hold for e in soft] == [False] * (len(soft) - 1) + [True] and all(e.revive for e in soft)
    assert all(e.hold and not e.revive for e in hard)


def test_only_what_is_scored_is_remembered() -> None:
    model = build("conv")
    session = prunus.Session(model, without_return(), task_of(batches("conv")), sparsity=0.6, steps=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)
    train(model, optimizer, 0, 1)
    assert set(session.running["movement"]) == {m.param for g in session.groups for m in g.with_role("out")}


# Drop criteria


def test_drop_criteria_are_the_papers() -> None:
    model, data = build("mlp"), batches("mlp", 1)
    cross_entropy(model, data[0]).backward()
    for criterion, formula in (
        (Sensitivity(), lambda w, g: abs(g) / (abs(w) + 1e-8)),
        (ReciprocalSensitivity(), lambda w, g: abs(w) / (abs(g) + 1e-8)),
        (MagnitudeAndGradient(factor=0.5), lambda w, g: abs(w) + 0.5 * abs(g)),
    ):
        ours = scores(model, task_of(data), criterion, Element())
        for n, p in model.named_parameters():
            for i in range(p.numel()) if p.ndim > 1 else ():
                w, g = float(p.detach().flatten()[i]), float(p.grad.flatten()[i])  # type: ignore[union-attr]
                assert float(ours[n].flatten()[i]) == pytest.approx(formula(w, g), rel=1e-12)


def test_shares_of_the_past_are_checked() -> None:
    for bad in (
        lambda: MomentumTaylor(momentum=1.0),
        lambda: ConfidenceBound(beta1=-0.1),
        lambda: MagnitudeAndGradient(factor=-1.0),
    ):
        with pytest.raises(SpecError):
            bad()
