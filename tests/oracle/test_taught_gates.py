"""Masks that are learned while the network is taught by the dense one: the losses and first steps, by hand."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import DataError, PrunusWarning, SpecError
from prunus.parts.gate import SoftMask
from prunus.parts.gate.fista import Fista
from prunus.parts.recover import Adversary, Chain, Distill, FineTune
from prunus.parts.recover.adversary import discriminator
from prunus.parts.schedule import OneShot

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(12) % 3
BATCH = (X, Y)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def labelled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def refused(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    raise AssertionError("the labels were read")


TASK = Task(loss=labelled, train=[BATCH], example=(X,))
SGD = torch.optim.SGD


# The accelerated shrinkage of the mask


def test_fista_by_hand() -> None:
    """Beck and Teboulle's momentum, t = 1, (1 + sqrt 5) / 2, ...; every third gradient makes a step."""
    lr, strength, wait = 0.2, 0.3, 3
    x = torch.tensor([1.0, 0.1, 0.6], dtype=torch.float64, requires_grad=True)
    optimizer = Fista([x], lr, strength, wait)
    target = [0.9, -0.4, 0.5]
    now, before, t = [1.0, 0.1, 0.6], [1.0, 0.1, 0.6], 1.0
    for call in range(1, 25):
        optimizer.zero_grad()
        ((x - torch.tensor(target, dtype=torch.float64)).square().sum() / 2).backward()
        optimizer.step()
        if call % wait == 0:
            t_new = 1.0 if call == wait else (1 + math.sqrt(1 + 4 * t * t)) / 2
            rest = []
            for i in range(3):
                y = now[i] + (0.0 if call == wait else (t - 1) / t_new) * (now[i] - before[i])
                z = y - lr * (now[i] - target[i])
                rest.append(max(0.0, math.copysign(max(0.0, abs(z) - lr * strength), z)))
            before, now, t = now, rest, t_new
        assert x.tolist() == pytest.approx(now, abs=1e-12)
    assert x[1] == 0.0


# The discriminator


def by_hand(d: list[nn.Linear], x: Tensor) -> Tensor:
    for one in d:
        x = one(x)
    return x


def test_the_game_by_hand() -> None:
    """The discriminator and its loss, with modules, binary cross-entropies and torch's own SGD, for four steps."""
    part = Adversary(weight=0.5, lr=0.2, momentum=0.8, decay=0.01, widths=(5, 4))
    model = net()
    teacher = copy.deepcopy(model)
    found = replace(methods.gal, recover=part, gate=SoftMask(strength=0.5, lr=0.1, wait=1))
    session = prunus.Session(model, found, TASK, sparsity=0.5, steps=6, seed=3)
    optimizer = SGD(model.parameters(), 0.1)
    session.attach(optimizer)
    d: list[nn.Linear] = []
    for step in range(4):
        optimizer.zero_grad()
        with torch.no_grad():
            student, target = model(X), teacher(X)
        value = session.loss(BATCH)
        memory = session.running["recovery"]
        if not d:  # what it began with, taken back from its first step
            fresh = prunus.Session(net(), found, TASK, sparsity=0.5, steps=6, seed=3)
            fresh.start()
            site = replace_site(fresh, {})
            discriminator(site, target, part.widths)
            for i, (a, b) in enumerate(((3, 5), (5, 4))):
                one = nn.Linear(a, b).double()
                with torch.no_grad():
                    one.weight.copy_(site.memory[f"0.weight|adversary {2 * i}"])
                    one.bias.zero_()
                d.append(one)
            their = SGD([p for m in d for p in (m.weight, m.bias)], 0.2, momentum=0.8, weight_decay=0.01)
        their.zero_grad()
        ones, zeros = torch.ones(12, 4, dtype=torch.float64), torch.zeros(12, 4, dtype=torch.float64)
        bce = F.binary_cross_entropy_with_logits
        (bce(by_hand(d, target), ones) + bce(by_hand(d, student), zeros) + bce(by_hand(d, student), ones)).backward()
        their.step()
        for i, one in enumerate(d):
            assert torch.allclose(memory[f"0.weight|adversary {2 * i}"], one.weight)
            assert torch.allclose(memory[f"0.weight|adversary {2 * i + 1}"], one.bias)
        expected = 0.5 * (student - target).square().mean() + bce(by_hand(d, student), ones)
        assert float(value.detach()) == pytest.approx(float(expected.detach())), step
        value.backward()
        optimizer.step()
    assert all(p.grad is None for p in session.teacher.parameters())


def replace_site(session: prunus.Session, memory: dict[str, Tensor]) -> object:
    from prunus.core.layer import Site

    return Site(session.model, session.task, session.groups, {}, session.generator, session.teacher, memory)


def test_no_label_is_read() -> None:
    found = replace(methods.gal, gate=SoftMask(wait=2))
    assert found.reads == "inputs"
    bare = Task(loss=refused, train=[BATCH], example=(X,))
    with_loss = prunus.prune(net(), bare, found, sparsity=0.5, steps=8, seed=1)
    without = prunus.prune(net(), replace(bare, loss=None), found, sparsity=0.5, steps=8, seed=1)
    assert all(torch.equal(with_loss.unit_masks[n], without.unit_masks[n]) for n in without.unit_masks)


def test_the_mask_shrinks_where_nothing_holds_it() -> None:
    """Dead neurons add nothing to the outputs: their factors go to zero first, and the others stay longer."""
    model = net()
    with torch.no_grad():
        model[2].weight[:, ::2] = 0.0
    found = replace(methods.gal, gate=SoftMask(strength=0.002, lr=2.0, wait=1))
    result = prunus.prune(model, TASK, found, sparsity=0.5, steps=60, optimizer=lambda p: SGD(p, 0.0))
    (mask,) = result.unit_masks.values()
    assert mask.tolist() == [False, True] * 3
    assert 0.4 < result.history[-1]["open"] < 1.0


def test_the_game_goes_on_where_it_stopped() -> None:
    """Bit by bit, from a state that was taken in the middle."""
    found = replace(methods.gal, gate=SoftMask(wait=2))

    def run(stop: int | None) -> tuple[nn.Module, dict[str, Tensor]]:
        model = net()
        session = prunus.Session(model, found, TASK, sparsity=0.5, steps=8)
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        session.attach(optimizer)
        for step in range(8):
            if step == stop:
                state, weights, own = session.state_dict(), copy.deepcopy(model.state_dict()), optimizer.state_dict()
                session.detach()
                model = net()
                session = prunus.Session(model, found, TASK, sparsity=0.5, steps=8)
                model.load_state_dict(weights)
                optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
                optimizer.load_state_dict(own)
                session.load_state_dict(state)
                session.attach(optimizer)
            optimizer.zero_grad()
            session.loss(BATCH).backward()
            optimizer.step()
        return model, session.result().unit_masks

    (whole, masks), (again, theirs) = run(None), run(5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(masks[n], theirs[n]) for n in masks)


# Distillation while masks are learned


def test_distillation_throughout_is_in_the_first_step() -> None:
    """Movement pruning's first step by hand: the gradient is that of Hinton's loss, not of the labels."""
    taught = replace(methods.movement, recover=Distill(temperature=2.0, weight=0.6, throughout=True))
    model, start = net(), net()
    with torch.no_grad():
        model[2].bias.add_(0.3)
        start[2].bias.add_(0.3)
    teacher = copy.deepcopy(start)
    session = prunus.Session(model, taught, TASK, sparsity=0.5, steps=10)
    optimizer = SGD(model.parameters(), 0.1)
    session.attach(optimizer)
    session.loss(BATCH).backward()
    optimizer.step()
    q, p = (start(X) / 2).log_softmax(1), (teacher(X) / 2).log_softmax(1)
    own = 0.4 * labelled(start, BATCH) + 0.6 * 4 * (p.exp() * (p - q)).sum(1).mean()
    for a, b, g in zip(
        model.parameters(), start.parameters(), torch.autograd.grad(own, list(start.parameters())), strict=True
    ):
        assert torch.allclose(a, b - 0.1 * g)


@pytest.mark.parametrize("name", ["movement", "cofi", "vtrans", "voita_heads"])
def test_any_learned_mask_can_be_taught(name: str) -> None:
    """With all weight on the teacher a run sees no label, from its first step to its last."""
    recipe = methods.get(name)
    units = recipe.granularity if name == "movement" else methods.gal.granularity
    taught = replace(recipe, granularity=units, recover=Distill(weight=1.0, throughout=True))
    result = prunus.prune(net(), replace(TASK, loss=refused), taught, sparsity=0.5, steps=6)
    assert 0 < result.sparsity < 1
    late = replace(taught, recover=Distill(weight=1.0))
    with pytest.raises((AssertionError, DataError)):
        prunus.prune(net(), replace(TASK, loss=refused), late, sparsity=0.5, steps=6)


def test_a_chain_trains_throughout_with_the_loss_that_does() -> None:
    chain = Chain((FineTune(), Distill(weight=1.0), Adversary()))
    assert chain.throughout and not Chain((FineTune(), Distill())).throughout
    found = replace(methods.gal, recover=chain)
    session = prunus.Session(net(), found, TASK, sparsity=0.5, steps=4)
    session.start()
    session.loss(BATCH)
    assert any("adversary" in k for k in session.running["recovery"])


def test_a_loop_that_never_asks_for_the_loss_is_told() -> None:
    model = net()
    session = prunus.Session(model, methods.gal, TASK, sparsity=0.5, steps=2)
    optimizer = SGD(model.parameters(), 0.1)
    session.attach(optimizer)

    def one() -> None:
        optimizer.zero_grad()
        labelled(model, BATCH).backward()
        optimizer.step()

    one()
    with pytest.warns(PrunusWarning, match=r"call session.loss\(batch\)"):
        one()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prunus.prune(net(), TASK, methods.gal, sparsity=0.5, steps=2)


def test_without_one_it_is_the_tasks_own() -> None:
    model = net()
    session = prunus.Session(model, replace(methods.magnitude, schedule=OneShot()), TASK, sparsity=0.5)
    assert torch.equal(session.loss(BATCH), labelled(model, BATCH)) and "recovery" not in session.running


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Adversary(weight=-1.0),
        lambda: Adversary(momentum=1.0),
        lambda: Adversary(widths=()),
        lambda: SoftMask(lr=0.0),
        lambda: SoftMask(wait=0),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(SpecError):
        wrong()  # type: ignore[operator]
