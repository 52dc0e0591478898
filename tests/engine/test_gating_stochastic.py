"""Stochastic gates in training loops: runs that resume, losses that are scaled, units of every kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.gate import Arm, Candidates, DualRestart, HardConcrete, Lagrangian, PolicyGradient
from prunus.parts.granularity import Channel, Coupled, Element, Expert
from prunus.parts.schedule import OneShot
from tests.contract.models import CASES
from tests.engine.looped import Looped
from tests.integration import toys

STEPS = 6
RECIPES = {
    "l0": methods.l0,
    "lagrangian": replace(methods.cofi, granularity=Channel(), gate=Lagrangian(lr=0.1, ascent=0.1)),
    "target_shape": replace(methods.sheared_llama, granularity=Channel()),
    "constrained_l0": replace(methods.constrained_l0, gate=DualRestart(lr=0.3, ascent=0.5)),
    "l0_arm": methods.l0_arm,
    "reinforce_masks": replace(methods.reinforce_masks, granularity=Channel(), gate=PolicyGradient(lr=0.1)),
    "subset_heads": replace(methods.subset_heads, granularity=Channel()),
    "chipnet": methods.chipnet,
    "mask_llm": replace(methods.mask_llm, gate=Candidates(lr=0.1)),
}


class Run(Looped):
    def __init__(self, name: str, seed: int = 0) -> None:
        budget = None if name == "mask_llm" else prunus.Budget(0.5)
        super().__init__(replace(RECIPES[name], schedule=OneShot(at=5 / 6)), STEPS, seed, budget)


@pytest.mark.parametrize("name", RECIPES)
def test_every_step_can_be_resumed_from(name: str) -> None:
    """Noise by the step, multipliers, baselines, and what Adam remembers."""
    whole, saved = Run(name).attach(), []
    for step in range(STEPS):
        state = {"m": whole.model.state_dict(), "o": whole.optimizer.state_dict(), "s": whole.session.state_dict()}
        saved.append(toys.pack(state))
        whole.train(step + 1)
    expected = whole.session.state_dict() | {"seconds": 0.0}
    for step in (1, 3, 5):
        state, again = toys.unpack(saved[step]), Run(name, seed=step + 1)
        again.model.load_state_dict(state["m"])
        again.optimizer.load_state_dict(state["o"])
        again.session.load_state_dict(state["s"])
        again.attach().train(STEPS)
        assert toys.same(toys.state_of(again.model), toys.state_of(whole.model)), step
        assert toys.pack(again.session.state_dict() | {"seconds": 0.0}) == toys.pack(expected), step


def scaled(
    name: str, scale: float | None, *, fused: bool = False, given: bool = False, bad: tuple[int, ...] = ()
) -> tuple[dict[str, Tensor], Tensor]:
    """Thetas and multipliers after four steps of a network in single precision, whose losses a scaler scales."""
    model = toys.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    task = prunus.Task(loss=toys.loss_of, train=[toys.batch_at(i) for i in range(4)], example=(toys.batch_at(0)[0],))
    found = replace(RECIPES[name], schedule=OneShot(at=1.0))
    if name == "l0":
        # A penalty as strong as the loss, and an optimizer that feels the size of gradients.
        found = replace(found, gate=Sgd(strength=0.05))
    session = prunus.Session(model, found, task, prunus.Budget(0.5), steps=STEPS)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    session.attach(optimizer, scaler=scaler if given else None)
    model.eval()  # the statistics of skipped steps are the loop's to undo
    for step in range(4):
        for failing in (True, False) if step in bad else (False,):
            for half in range(2):  # two backward passes per step
                loss = toys.loss_of(model, toys.batch_at(step)) / 2
                if failing and half:  # the first of them leaves gradients that look right
                    loss = loss + float("inf") * model.head.bias.sum()
                loss.backward() if scaler is None else scaler.scale(loss).backward()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
        assert session.step == step + 1
    assert session.gating is not None
    return {n: t.detach().clone() for n, t in session.gating.thetas.items()}, session.gating.duals


class Sgd(HardConcrete):
    """Hard concrete gates with plain gradient steps."""

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["l0", "lagrangian", "subset_heads", "l0_arm"])
def test_loss_scaling_is_undone_for_gates_and_not_for_their_penalty(name: str, fused: bool, given: bool) -> None:
    plain, duals = scaled(name, None, fused=fused)
    found, others = scaled(name, 2.0**10, fused=fused, given=given)
    assert torch.allclose(duals, others, rtol=1e-5, atol=1e-7)
    for n, theta in plain.items():
        assert torch.allclose(theta, found[n], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["l0", "subset_heads"])
def test_what_a_skipped_step_left_is_forgotten(name: str) -> None:
    """Finite and infinite gradients of gates from steps that the scaler skipped, the first one included."""
    plain, _ = scaled(name, 2.0**10)
    found, _ = scaled(name, 2.0**10, given=True, bad=(0, 2))
    for n, theta in plain.items():
        assert torch.allclose(theta, found[n], rtol=1e-4, atol=1e-6)
    seen, _ = scaled(name, 2.0**10, bad=(2,))  # a scaler that was found by itself
    assert all(torch.allclose(t, seen[n], rtol=1e-4, atol=1e-6) for n, t in plain.items())


@pytest.mark.parametrize("gate", [HardConcrete(), Lagrangian(), DualRestart(), Arm()], ids=lambda g: type(g).__name__)
def test_heads_and_neurons_are_gated_where_they_are_read(gate: Any) -> None:
    """Between attention and its output projection, and after the activation of the feed-forward layer."""
    case = CASES["vit"]
    model = case.model().eval()
    found = replace(methods.cofi, granularity=Coupled(), gate=gate)
    session = prunus.Session(model, found, case.task(), prunus.Budget(0.5), steps=20)
    session.attach(torch.optim.SGD(model.parameters(), lr=0.0))
    x = case.batches(1)[0][0]
    kinds = {g.kind: g.name for g in session.groups if g.name in session.gating.thetas}
    assert set(kinds) == {"head", "neuron"}
    value = {k: gate.value(session.gating.thetas[n], session.gating._moments[n]) for k, n in kinds.items()}
    grown = 1 / (1 - gate.drop) if isinstance(gate, DualRestart) else 1.0  # which is part of the weights
    with torch.no_grad():
        ours = model(x)
        session.detach()
        hooks = [
            model.block.attention.proj.register_forward_pre_hook(
                lambda m, args: (args[0] * value["head"].repeat_interleave(8),)
            ),
            model.block.mlp[2].register_forward_pre_hook(lambda m, args: (args[0] * value["neuron"],)),
        ]
        assert torch.allclose(model(x), ours, rtol=1e-10)
        assert torch.allclose(model.block.mlp[2].weight, grown * case.model().block.mlp[2].weight)
        for hook in hooks:
            hook.remove()


def test_ranks_are_gated_between_their_factors() -> None:
    """W = P diag(g) Q."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    dense = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    task = prunus.Task(loss=lambda m, b: m(x).square().mean(), train=[0], example=(x,))
    session = prunus.Session(model, methods.flop, task, prunus.Budget(0.5), steps=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session.attach(optimizer)
    for group in session.groups:
        g = session.gating.part.value(session.gating.thetas[group.name], session.gating._moments[group.name])
        index = 0 if len(g) == 5 else 2
        first, second = model[index]
        whole = second._parameters["weight"] @ first._parameters["weight"]
        assert torch.allclose(second.weight @ first.weight, (second._parameters["weight"] * g) @ first.weight)
        assert index or torch.allclose(whole, dense[0])
    for _ in range(8):
        optimizer.zero_grad()
        task.loss_of(model, 0).backward()
        optimizer.step()
    assert session.result().unit_masks.keys() == {g.name for g in session.groups}
    assert sum(int(m.sum()) for m in session.masks.values()) == 5  # of nine


def test_experts_have_no_gate_and_the_refusal_says_so() -> None:
    case = CASES["moe"]
    found = replace(methods.l0, granularity=Expert())
    session = prunus.Session(case.model(), found, case.task(), prunus.Budget(0.7), steps=4)
    with pytest.raises(SpecError, match="HardConcrete"):
        session.attach(torch.optim.SGD(session.model.parameters(), lr=0.1))


def test_noise_is_the_sessions_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, second = (Run("l0").attach().train(3) for _ in range(2))
    for n, theta in first.session.gating.thetas.items():
        assert torch.equal(theta, second.session.gating.thetas[n])
        assert torch.equal(first.session.gating._moments[n].noise, second.session.gating._moments[n].noise)
    assert torch.equal(torch.get_rng_state(), before)


def test_single_weights_have_gates_too() -> None:
    model = toys.network(kind=toys.mlp).double()
    x, y = toys.batch_at(0, (6,))
    task = prunus.Task(loss=lambda m, b: F.cross_entropy(m(x.double()), y), train=[0])
    found = replace(methods.l0, granularity=Element(), gate=HardConcrete(strength=1e-3, lr=0.1))
    result = prunus.prune(model, task, found, sparsity=0.5, steps=20)
    assert result.sparsity == pytest.approx(0.5, abs=0.01) and "open" in result.history[-1]
