"""Gates in someone else's training loop: what they touch, what they leave alone, and that runs resume."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.allocation import GlobalRanking, NofM
from prunus.parts.gate import Annealed, Coefficient, Popup
from prunus.parts.granularity import Channel
from prunus.parts.schedule import EarlyBird, OneShot, Relearned
from tests.engine.looped import Looped, batch, task
from tests.integration import toys

STEPS = 8
RECIPES = {
    "edge_popup": methods.edge_popup,
    "supermask": methods.supermask,
    "biprop": methods.biprop,
    "continuous_sparsification": methods.continuous_sparsification,
    "continuous_tickets": replace(methods.continuous_tickets, schedule=Relearned(rounds=2, rewind=0.4)),
    "pfs": replace(methods.pfs, schedule=OneShot(at=0.6)),
    "early_bert": replace(
        methods.early_bert, schedule=EarlyBird(probes=3, until=0.8, window=1, settle=0.3, rewind=0.125)
    ),
}
EVERY = pytest.mark.parametrize("name", RECIPES)


class Run(Looped):
    def __init__(self, name: str, seed: int = 0, **changes: Any) -> None:
        super().__init__(replace(RECIPES[name], **changes), STEPS, seed)


@EVERY
def test_the_models_names_and_parameters_stay_the_users(name: str) -> None:
    run = Run(name)
    kinds = {n: type(m) for n, m in run.model.named_modules()}
    keys, identities = list(run.model.state_dict()), [id(p) for p in run.model.parameters()]
    fields = {n: sorted(vars(m)) for n, m in run.model.named_modules()}
    run.attach().train(2)
    assert run.session.gating is not None
    assert list(run.model.state_dict()) == keys == [*toys.state_of(run.model)]
    assert [id(p) for p in run.model.parameters()] == identities
    assert any(type(m) is not kinds[n] for n, m in run.model.named_modules())
    assert all(isinstance(m, kinds[n]) for n, m in run.model.named_modules())
    run.train(STEPS)
    run.session.detach()
    assert run.session.gating is None
    assert {n: type(m) for n, m in run.model.named_modules()} == kinds
    assert {n: sorted(vars(m)) for n, m in run.model.named_modules()} == fields
    result = run.session.result()
    assert all((p.detach()[~result.masks[n]] == 0).all() for n, p in run.model.named_parameters() if n in result.masks)


@EVERY
def test_every_step_can_be_resumed_from(name: str) -> None:
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


def test_the_gates_of_another_model_are_refused() -> None:
    run = Run("edge_popup").attach().train(1)
    state = run.session.state_dict()
    state["gates"]["thetas"]["stem.weight"] = torch.zeros(3)
    with pytest.raises(SpecError, match=r"gates of 'stem.weight'"):
        Run("edge_popup").session.load_state_dict(state)


@pytest.mark.parametrize("name", ["edge_popup", "supermask", "biprop", "pfs"])
def test_frozen_means_that_no_parameter_moves_and_statistics_do(name: str) -> None:
    run = Run(name)
    before = toys.state_of(run.model)
    run.attach().train(4)
    assert run.session.gating is not None
    now = toys.state_of(run.model)
    moved = {n for n in now if not torch.equal(now[n], before[n])}
    assert moved == {n for n in now if "running" in n or "num_batches" in n}
    assert all(p.grad is not None and p.requires_grad for p in run.model.parameters())  # the user's, and left alone


@pytest.mark.parametrize("name", ["continuous_sparsification", "early_bert"])
def test_unfrozen_means_that_gates_and_weights_are_trained_together(name: str) -> None:
    run = Run(name)
    before = toys.state_of(run.model)
    run.attach()
    theta = {n: t.detach().clone() for n, t in run.session.gating.thetas.items()}
    run.train(3)
    now = toys.state_of(run.model)
    assert all(not torch.equal(now[n], p) for n, p in before.items())
    assert all(not torch.equal(t, theta[n]) for n, t in run.session.gating.thetas.items())


@pytest.mark.parametrize("allocate", [GlobalRanking(), NofM(2, 4)], ids=repr)
def test_a_popup_learns_the_mask_of_whatever_allocation_it_is_given(allocate: Any) -> None:
    model = toys.network(kind=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))).double()
    found = replace(methods.edge_popup, allocate=allocate)
    data = prunus.Task(loss=toys.loss_of, example=(torch.zeros(1, 6).double(),))
    session = prunus.Session(model, found, data, None if allocate != GlobalRanking() else prunus.Budget(0.5), steps=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)
    for step in range(3):
        x, y = toys.batch_at(step, (6,))
        worth = {n: t.detach().abs() for n, t in session.gating.thetas.items()}
        keep = allocate(worth, 0.5, {g.name: g for g in session.groups})
        for name, mask in keep.items():
            layer = model[int(name[0])]
            assert torch.equal(layer.weight != 0, mask)
        optimizer.zero_grad()
        toys.loss_of(model, (x.double(), y)).backward()
        optimizer.step()
    assert session.result().sparsity == pytest.approx(0.5, abs=0.01) or allocate != GlobalRanking()


def test_a_copy_is_a_plain_model_that_computes_the_same() -> None:
    run = Run("continuous_sparsification", gate=Annealed(start=0.3)).attach().train(2)
    run.model.eval()
    twin = copy.deepcopy(run.model)
    x = batch(7)[0]
    assert torch.equal(twin(x), run.model(x)) and not torch.equal(
        twin.stem._parameters["weight"], run.model._modules["stem"]._parameters["weight"]
    )
    assert type(twin.stem) is nn.Conv2d and twin.norm.training is False
    before = twin(x)
    run.train(3)
    assert torch.equal(before, twin(x)) and not torch.equal(before, run.model.eval()(x))
    with pytest.raises(SpecError, match="not pickled"):
        pickle.dumps(run.model)


def test_detaching_takes_the_gates_out_and_attaching_puts_them_back() -> None:
    run = Run("pfs").attach().train(3)
    run.model.eval()
    gated = run.model(batch(7)[0])
    run.session.detach()
    assert type(run.model.head) is nn.Linear and not torch.equal(run.model(batch(7)[0]), gated)
    run.attach()
    assert torch.equal(run.model(batch(7)[0]), gated)


def test_two_sessions_do_not_gate_one_model() -> None:
    run = Run("edge_popup").attach()
    other = prunus.Session(run.model, methods.edge_popup, task(), prunus.Budget(0.5), steps=STEPS)
    with pytest.raises(SpecError, match="gated already"):
        other.attach(torch.optim.SGD(run.model.parameters(), lr=0.1))
    run.train(STEPS)
    assert type(run.model.head) is nn.Linear


class Hoarder(nn.Module):
    """Keeps its first weight in a list of its own."""

    def __init__(self, only: bool) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 6)
        self.only, self.held = only, [self.inner.weight]

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.held[0])
        return out if self.only else self.head(out)


@pytest.mark.parametrize("only", [True, False])
def test_weights_that_no_gate_reaches_are_left_out_or_refused(only: bool) -> None:
    model = toys.network(kind=lambda: Hoarder(only))
    session = prunus.Session(model, methods.edge_popup, prunus.Task(), prunus.Budget(0.5), steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1])).backward()
        optimizer.step()

    if only:
        with pytest.raises(SpecError, match="no gradient reaches any gate"):
            step()
        return
    step()
    step()
    assert list(session.result().unit_masks) == ["head.weight"]
    assert set(session.skipped) == {"inner.weight"}


def test_recurrent_cells_are_gated_and_forget_it_afterwards() -> None:
    model = toys.network(kind=lambda: nn.GRU(4, 6, batch_first=True)).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    session = prunus.Session(model, methods.continuous_sparsification, prunus.Task(), prunus.Budget(0.5), steps=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        model(x)[0].square().sum().backward()
        optimizer.step()
        if step == 0:
            twin = copy.deepcopy(model)
            assert type(twin) is nn.GRU and torch.allclose(twin(x)[0], model(x)[0], rtol=1e-12)
    session.detach()
    result = session.result()
    assert type(model) is nn.GRU and all(w.is_leaf for w in model._flat_weights)
    assert result.sparsity == 0.5 and all((model._parameters[n][~m] == 0).all() for n, m in result.masks.items())
    assert torch.equal(copy.deepcopy(model)(x)[0], model(x)[0])


def test_a_tied_weight_has_one_gate() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu())

    model = toys.network(kind=Tied)
    session = prunus.Session(model, methods.edge_popup, prunus.Task(), prunus.Budget(0.5), steps=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)
    assert torch.equal(model.one.weight, model.two.weight) and int((model.one.weight != 0).sum()) == 8
    twin = copy.deepcopy(model)
    assert twin.one.weight is twin.two.weight and torch.equal(twin.one.weight, model.two.weight)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert model.one.weight is model.two.weight and list(session.masks) == ["one.weight"]


def gradient_of(loop: Callable[[Any, Any], None]) -> Tensor:
    run = Run("continuous_sparsification", gate=Annealed(lr=0.1, momentum=0.0, strength=0.0)).attach()
    before = run.session.gating.thetas["head.weight"].detach().clone()
    run.model.eval()
    loop(run.model, run.optimizer)
    assert run.session.step == 1
    return (before - run.session.gating.thetas["head.weight"].detach()) / 0.1


def test_accumulated_batches_and_closures_are_one_step_of_the_gates() -> None:
    def plain(model: Any, optimizer: Any) -> None:
        (toys.loss_of(model, batch(0)) + toys.loss_of(model, batch(1))).backward()
        optimizer.step()

    def accumulated(model: Any, optimizer: Any) -> None:
        toys.loss_of(model, batch(0)).backward()
        toys.loss_of(model, batch(1)).backward()
        optimizer.step()

    def closed(model: Any, optimizer: Any) -> None:
        def closure() -> Tensor:
            loss = toys.loss_of(model, batch(0)) + toys.loss_of(model, batch(1))
            loss.backward()
            return loss

        optimizer.step(closure)

    expected = gradient_of(plain)
    assert expected.abs().max() > 1e-3
    assert torch.allclose(gradient_of(accumulated), expected, rtol=1e-9)
    assert torch.allclose(gradient_of(closed), expected, rtol=1e-9)


def test_gradients_that_are_not_finite_do_not_reach_the_gates() -> None:
    run = Run("edge_popup").attach()
    before = run.session.gating.thetas["head.weight"].detach().clone()
    (toys.loss_of(run.model, batch(0)) * float("inf")).backward()
    run.optimizer.step()
    assert torch.equal(run.session.gating.thetas["head.weight"], before)
    run.train(2)
    assert not torch.equal(run.session.gating.thetas["head.weight"], before)


def test_an_exception_in_attach_leaves_no_gate_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("edge_popup")
    run.session.gating = None

    def broken(*_: Any) -> Any:
        raise RuntimeError("in the middle of it")

    monkeypatch.setattr("prunus.engine.session.run_due", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        run.attach()
    assert type(run.model.head) is nn.Linear and type(run.model.stem) is nn.Conv2d


def test_a_gate_must_be_defined_on_some_group() -> None:
    from tests.contract.models import CASES

    case = CASES["moe"]
    found = replace(methods.pfs, granularity=prunus.parts.granularity.Expert(), recover=None)
    model = case.model()
    with pytest.raises(SpecError):
        prunus.prune(model, case.task(), found, sparsity=0.4, steps=4)


def test_a_budget_in_macs_is_met_by_what_the_gates_say() -> None:
    found = replace(methods.pfs, schedule=OneShot(at=0.5))
    result = prunus.prune(toys.network().double(), task(), found, budget=prunus.Budget(macs=0.6), steps=6)
    small = result.compact()
    x = batch(0)[0]
    dense, left = (prunus.measure.macs(m, (x,)).total for m in (toys.network().double(), small))
    assert 0.3 < left / dense <= 0.6


def test_where_the_gates_stand_in_the_survey() -> None:
    assert {methods.get(n).when for n in ("edge_popup", "supermask", "biprop", "pfs")} == {"before"}
    assert methods.continuous_sparsification.when == "during" and methods.early_bert.when == "after"
    assert {methods.get(n).how for n in RECIPES} == {"learned"}
    assert not any(methods.get(n).data_free for n in RECIPES)
    assert replace(methods.edge_popup, granularity=Channel()).structure == "structured"


def test_channels_can_pop_up_as_well() -> None:
    found = replace(methods.edge_popup, granularity=Channel(), gate=Popup(lr=1.0))
    result = prunus.prune(toys.network().double(), task(), found, sparsity=0.5, steps=5)
    small = result.compact()
    assert small.stem.out_channels == 4


def test_small_models_in_half_precision_have_gates_in_single() -> None:
    model = toys.network().to(torch.bfloat16)
    x = batch(0)[0].to(torch.bfloat16)
    data = prunus.Task(loss=lambda m, b: m(x).float().square().sum(), example=(x,))
    session = prunus.Session(model, methods.early_bert, data, prunus.Budget(0.5), steps=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)
    assert all(t.dtype == torch.float32 for t in session.gating.thetas.values())
    data.loss_of(model, 0).backward()
    optimizer.step()
    assert isinstance(session.recipe.gate, Coefficient) and session.gating.reached


@pytest.mark.parametrize("gate", [Popup(), Annealed()], ids=repr)
def test_boxes_of_weights_have_one_gate_each(gate: Any) -> None:
    found = replace(
        methods.edge_popup, granularity=prunus.parts.granularity.Tile(), allocate=GlobalRanking(), gate=gate
    )
    model = toys.network().double()
    session = prunus.Session(model, found, task(), prunus.Budget(0.5), steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.attach(optimizer)
    group = session.groups[0]
    member = group.members[0]
    theta = session.gating.thetas[group.name]
    with torch.no_grad():
        theta.copy_(torch.randn_like(theta))
    session.gating.turn()
    value = session.gating.part.value(theta, session.gating._moments[group.name]).detach()
    boxes = group.view(member, model.get_submodule(member.param.rpartition(".")[0]).weight)
    raw = group.view(member, session.parameters[member.param])
    assert boxes.shape[-1] > 1 and torch.allclose(boxes, raw * value.reshape(group.shape).unsqueeze(-1))
