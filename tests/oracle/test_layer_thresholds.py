"""One threshold per layer, moved by the loss and by a budget: the run written out with autograd over all of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import methods
from prunus.core.errors import SpecError
from prunus.core.gate import Moment
from prunus.parts.gate import LayerThreshold
from prunus.parts.schedule import OneShot
from tests.oracle.shadow_nets import best

X = torch.randn(16, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(16, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
STEPS, RATE, DENSITY = 12, 0.05, 0.5


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 4, bias=False), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(4, 2, bias=False)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().mean()


TASK = prunus.Task(loss=squared, train=[0], example=(X,))


def over(w: Tensor, t: Tensor) -> Tensor:
    """By how much each row's norm, over the mean of all, clears the threshold; no gradient for the weights."""
    norms = torch.stack([row.detach().square().sum().sqrt() for row in w])
    return norms / (sum(norms) / len(norms)) - t


@pytest.mark.parametrize("weighs", ["units", "weights"])
def test_thresholds_follow_the_loss_and_the_budget(weighs: str) -> None:
    gate = LayerThreshold(hot=0.4, cold=0.05, start=0.3, strength=4.0, warm=0.75, lr=0.1, weighs=weighs)
    model = net()
    found = replace(methods.lapp, gate=gate, schedule=OneShot(at=1.0))
    session = prunus.Session(model, found, TASK, prunus.Budget(DENSITY), steps=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    session.attach(optimizer)
    w = [p.detach().clone() for p in net().parameters()]
    t = [torch.tensor([0.3], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    adam = torch.optim.Adam(t, lr=0.1)
    each = [5 + 4, 6 + 2] if weighs == "weights" else [1, 1]  # a row of what makes it, a column of what reads it
    for k in range(STEPS):
        optimizer.zero_grad()
        ours = squared(model)
        ours.backward()
        optimizer.step()
        live = [p.clone().requires_grad_() for p in w]
        tau = 0.4 * (0.05 / 0.4) ** (k / STEPS)
        gates = [torch.sigmoid(over(p, s) / tau) for p, s in zip(w, t, strict=False)]
        h = torch.tanh(torch.tanh(X @ live[0].T) * gates[0] @ live[1].T) * gates[1]
        loss = (h @ live[2].T - Y).square().mean()
        assert float(ours.detach()) == pytest.approx(float(loss.detach()), rel=1e-9)
        goal = 1 - DENSITY * min(1.0, k / STEPS / 0.75)
        adam.zero_grad()
        loss.backward(retain_graph=True)
        w = [p - RATE * q.grad for p, q in zip(w, live, strict=True)]
        # The term is taken after the step of the weights, as all terms of gates are.
        gates = [torch.sigmoid(over(p, s) / tau) for p, s in zip(w, t, strict=False)]
        left = sum(e * g.sum() for e, g in zip(each, gates, strict=True)) / (6 * each[0] + 4 * each[1])
        (4.0 * torch.relu(left - goal) ** 2).backward()
        adam.step()
    clear = [over(p, s.detach()) for p, s in zip(w, t, strict=False)]
    masks = best(clear, 1 - DENSITY)
    assert all(torch.equal(session.masks[n], m) for n, m in zip(session.masks, masks, strict=True))
    assert session.history[-1]["open"] == pytest.approx(sum(int((c > 0).sum()) for c in clear) / 10)
    expected = [
        w[0] * masks[0].double().unsqueeze(1),
        w[1] * masks[1].double().unsqueeze(1) * masks[0],
        w[2] * masks[1],
    ]
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-8, atol=1e-11)
    assert float(t[0].detach()) != pytest.approx(float(t[1].detach()), abs=1e-3)


def test_gates_become_steps_and_the_budget_only_pulls_down() -> None:
    gate, w = LayerThreshold(hot=0.2, cold=0.01), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    theta = torch.tensor([0.5])
    assert gate.worth_over(theta, w).tolist() == pytest.approx([5 / 3 - 0.5, 1 / 3 - 0.5])
    early, late, over = (Moment(p, 0.5, w=w) for p in (0.0, 0.99, 1.0))
    assert gate.value(theta, early)[1] > 0.2 > 1e-3 > gate.value(theta, late)[1]
    assert gate.value(theta, over).tolist() == [1.0, 1.0] and gate.open(theta, over).tolist() == [True, False]
    free = torch.tensor([9.0])  # nothing is left: nothing to pay
    assert float(gate.penalty({"a": free}, Moment(0.9, 0.5, w=w, others={"a": Moment(0.9, 0.5, w=w)}))) == 0.0
    for wrong in ({"cold": 0.0}, {"hot": 0.001}, {"warm": 2.0}, {"lr": 0.0}):
        with pytest.raises(SpecError, match="LayerThreshold"):
            LayerThreshold(**wrong)
    assert math.isclose(float(gate.value(theta, early)[0]), 1 / (1 + math.exp(-(5 / 3 - 0.5) / 0.2)), rel_tol=1e-6)
