"""Training in ticks and tocks, against the same loop written out: which parameters move in which step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.parts.criteria import SummedSensitivity
from prunus.parts.penalty import TockL1
from prunus.parts.prox import Ticking
from prunus.parts.schedule import Gradual

STEPS, EVERY = 20, 10
DATA = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LABELS = torch.arange(8) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
    return nn.Sequential(*layers).double()


def loss(model: nn.Module, batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(model(DATA), LABELS)


TASK = prunus.Task(loss=loss, train=[(DATA, LABELS)], example=(DATA,))


def descent(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)


def test_a_tick_trains_the_gates_alone_and_a_tock_everything_with_their_norm() -> None:
    model, mine = net(), net()
    schedule = Gradual(end=1.0, every=EVERY, power=1.0)
    found = replace(
        methods.gate_decorator,
        schedule=schedule,
        criterion=SummedSensitivity(tick=0.3),
        penalty=TockL1(0.02, 0.3),
        prox=Ticking(0.3),
    )
    session = prunus.Session(model, found, TASK, prunus.Budget(0.2), steps=STEPS)
    optimizer, slow = descent(model), descent(mine)
    session.attach(optimizer)
    every = session.events[0].step
    frozen, summed = 0, torch.zeros(6, dtype=torch.float64)
    for t in range(every):
        tick = t / every >= 0.7
        before = mine[0].weight.detach().clone()
        for network, stepper in ((model, optimizer), (mine, slow)):
            stepper.zero_grad()
            total = loss(network)
            if network is mine and not tick:
                total = total + 0.02 * mine[1].weight.abs().sum()
            total.backward()
            if network is mine and tick:
                summed += (mine[1].weight * mine[1].weight.grad).abs().detach()
                mine[0].weight.grad = None  # what requires no gradient is no business of the optimizer
            stepper.step()
        frozen += int(torch.equal(before, mine[0].weight))
        if t < every - 1:
            for a, b in zip(model.parameters(), mine.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert 0 < frozen < every
    # The event falls after the tick: |gamma dL/dgamma| of its steps, of the lowest as many go as the path says.
    (mask,) = session.masks.values()
    order = summed.argsort()
    assert mask.sum() < 6 and set(order[: int((~mask).sum())].tolist()) == set((~mask).nonzero().flatten().tolist())


def test_nothing_is_frozen_after_the_last_event() -> None:
    model = net()
    found = replace(methods.gate_decorator, schedule=Gradual(end=0.5, every=5, power=1.0), prox=Ticking(1.0))
    session = prunus.Session(model, found, TASK, prunus.Budget(0.5), steps=STEPS)
    session.attach(optimizer := descent(model))
    moved = []
    for _ in range(STEPS):
        before = model[0].weight.detach().clone()
        kept = next(iter(session.masks.values())).clone()
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
        still = next(iter(session.masks.values())) & kept
        moved.append(not torch.equal(before[still], model[0].weight.detach()[still]))
    assert moved == [False] * (STEPS // 2) + [True] * (STEPS // 2)


def test_shares_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(SpecError, match=r"in \[0, 1\]"):
        Ticking(tick=1.5)
    with pytest.raises(SpecError, match=r"in \[0, 1\]"):
        TockL1(tick=-0.1)
