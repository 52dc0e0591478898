"""Auto-train-once: the controller as torch's own modules, and the run that it guides, written out."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import NothingScored, SpecError
from prunus.core.evidence import Sources
from prunus.parts.criteria import ControllerWorth
from prunus.parts.evidence.controller import off_target, share_left
from prunus.parts.granularity import Element
from prunus.parts.prox import MarkedThreshold
from prunus.parts.schedule import MarkThenCut
from tests.oracle.shadow_nets import best

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(24, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
RATE, STEPS = 0.1, 16
WORTH = ControllerWorth(begin=0.0, until=0.5, every=2, strength=3.0, rate=0.05, decay=0.1)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def squared(model: nn.Module, batch: Any = None) -> Tensor:
    return (model(X) - Y).square().mean()


TASK = Task(loss=squared, train=[0], calib=[0], example=(X,))


class Controller(nn.Module):
    """The published one, with values taken from a session."""

    def __init__(self, store: dict[str, Tensor]) -> None:
        super().__init__()
        short = {n.split("|", 1)[1]: t.clone() for n, t in store.items()}
        self.inputs = short["inputs"]
        self.gru, self.norm = nn.GRU(64, 128, bidirectional=True).double(), nn.LayerNorm([256]).double()
        self.heads = nn.ModuleList([nn.Linear(256, n, bias=False).double() for n in (6, 4)])
        ours = {"weight_ih": "input", "weight_hh": "hidden", "bias_ih": "input_bias", "bias_hh": "hidden_bias"}
        with torch.no_grad():
            for theirs, name in ours.items():
                getattr(self.gru, f"{theirs}_l0").copy_(short[name])
                getattr(self.gru, f"{theirs}_l0_reverse").copy_(short[f"{name}_reverse"])
            heads = [t for n, t in short.items() if n.startswith("head|")]
            for linear, t in zip(self.heads, heads, strict=True):
                linear.weight.copy_(t)

    def forward(self) -> list[Tensor]:
        out, _ = self.gru(self.inputs.unsqueeze(1), torch.zeros(2, 1, 128, dtype=torch.float64))
        return [h(torch.relu(self.norm(out[i])))[0] for i, h in enumerate(self.heads)]

    def optimizer(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.05)


def gated(w: list[Tensor], gates: list[Tensor]) -> Tensor:
    h = torch.tanh(X @ w[0].T + w[1]) * gates[0]
    h = torch.tanh(h @ w[2].T + w[3]) * gates[1]
    return (h @ w[4].T + w[5] - Y).square().mean()


def drawn(odds: list[Tensor], draw: torch.Generator) -> list[Tensor]:
    found = []
    for o in odds:
        u = torch.rand(o.shape, generator=draw, dtype=torch.float64)
        found.append(torch.sigmoid((o - torch.log(-torch.log(u + 1e-20) + 1e-20) + 3.0) / 0.4))
    return found


def test_a_run_guided_by_a_controller() -> None:
    prox = MarkedThreshold(strength=(2.0, 9.0))
    found = replace(methods.ato, criterion=WORTH, prox=prox, schedule=MarkThenCut(at=0.25, cut=1.0, again=1, until=0.5))
    model = net()
    session = prunus.Session(model, found, TASK, prunus.Budget(0.5), steps=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    session.attach(optimizer)
    assert [(e.step, e.mark) for e in session.events] == [(4, True), (8, True), (16, False)]
    w = [p.detach().clone() for p in net().parameters()]
    ones, masks = [torch.ones(6, dtype=torch.float64), torch.ones(4, dtype=torch.float64)], [None, None]
    controller: Controller | None = None
    for t in range(STEPS):
        state = session.generator.get_state()
        optimizer.zero_grad()
        ours = squared(model)
        ours.backward()
        optimizer.step()
        live = [p.clone().requires_grad_() for p in w]
        loss = gated(live, ones)
        assert float(ours.detach()) == pytest.approx(float(loss.detach()), rel=1e-9)
        if controller is None:
            controller = Controller(session.running["controller"])
            adam = controller.optimizer()
        elif t % 2 and t < 8:
            draw = torch.Generator()
            draw.set_state(state)
            torch.randint(2**31, (1,), generator=draw)  # what the model's own randomness is seeded with
            odds = controller()
            soft, other = drawn(odds, draw), drawn(odds, draw)
            left = torch.cat([(v >= 0.5).double() + v - v.detach() for v in other]).mean()
            far = torch.log(left.clamp(min=0.505) / 0.5) if left > 0.5 else torch.log(0.5 / left.clamp(max=0.495))
            adam.zero_grad()
            (gated(w, soft) + 3.0 * far).backward()
            adam.step()
        w = [p - RATE * g for p, g in zip(w, torch.autograd.grad(loss, live), strict=True)]
        if masks[0] is not None:
            gone = sum(int((~m).sum()) for m in masks)
            for i, m in enumerate(masks):
                made = torch.cat([w[2 * i], w[2 * i + 1].unsqueeze(1)], 1)
                pull = RATE * (9.0 if t >= 8 else 2.0) * int((~m).sum()) / gone
                factor = torch.relu(1 - pull / made.norm(dim=1)).masked_fill(m, 1.0)
                w[2 * i], w[2 * i + 1] = w[2 * i] * factor.unsqueeze(1), w[2 * i + 1] * factor
        if t + 1 in (4, 8):
            masks = best([o.detach() for o in controller()], 0.5)
    assert all(torch.equal(a, b) for a, b in zip(session.masks.values(), masks, strict=True))
    rows = [masks[0], masks[0], masks[1], masks[1], None, None]
    columns = [None, None, masks[0], None, masks[1], None]
    for p, expected, row, column in zip(model.parameters(), w, rows, columns, strict=True):
        expected = expected if row is None else expected * row.double().reshape(-1, *[1] * (p.ndim - 1))
        expected = expected if column is None else expected * column.double()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-8, atol=1e-11)
    assert not all(torch.equal(m, torch.ones_like(m)) for m in masks)


def test_what_is_left_is_counted_by_the_product_of_widths() -> None:
    model = net()
    groups = methods.ato.granularity(model, (X,))
    prices = {"units": {}, "params": {n: 1.0 for n, _ in model.named_parameters()}}
    prices["macs"] = {n: float(n.endswith("weight")) for n in prices["params"]}
    a, b = torch.tensor([1.0, 0, 1, 1, 0, 0]).double(), torch.tensor([1.0, 1, 1, 0]).double()
    values = dict(zip([g.name for g in groups], (a, b), strict=True))
    expected = {"units": 6 / 10, "params": (12 + 12 + 8) / (24 + 28 + 10), "macs": (9 + 9 + 6) / (18 + 24 + 8)}
    for weighs, each in prices.items():
        store = {f"{n}|price": torch.tensor(c) for n, c in each.items()}
        sources = Sources(model, TASK, groups, dict(model.named_parameters()), torch.Generator(), {"weighs": weighs})
        assert float(share_left(store, values, sources)) == pytest.approx(expected[weighs]), weighs


def test_the_target_is_drawn_to_from_both_sides() -> None:
    for left, slope in ((0.8, 1 / 0.8), (0.3, -1 / 0.3), (0.502, 0.0), (0.498, 0.0)):
        v = torch.tensor(left, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(off_target(v, 0.5), v)
        assert float(found) == pytest.approx(slope)
    assert float(off_target(torch.tensor(0.0, dtype=torch.float64), 0.5)) < 7  # nothing left: finite


def test_an_interrupted_run_goes_on() -> None:
    found = replace(methods.ato, criterion=replace(WORTH, weighs="macs"))

    def begun(weights: dict[str, Tensor]) -> Any:
        model = net()
        model.load_state_dict(weights)
        return prunus.Session(model, found, TASK, prunus.Budget(macs=0.5), steps=8)

    def run(session: Any, steps: int) -> None:
        (optimizer,) = session.optimizers
        for _ in range(steps):
            optimizer.zero_grad()
            squared(session.model).backward()
            optimizer.step()

    whole = begun(net().state_dict())
    whole.attach(torch.optim.SGD(whole.model.parameters(), lr=RATE))
    run(whole, 2)
    weights, saved = copy.deepcopy((whole.model.state_dict(), whole.state_dict()))
    run(whole, 6)
    again = begun(weights)
    again.load_state_dict(saved)
    again.attach(torch.optim.SGD(again.model.parameters(), lr=RATE))
    run(again, 6)
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(whole.masks[n], again.masks[n]) for n in whole.masks)


def test_units_that_nothing_reads_are_not_steered() -> None:
    """Single weights: said at the event, as of every criterion that scores nothing; the steps before it are made."""
    found = replace(methods.ato, criterion=WORTH, granularity=Element(), prox=None, schedule=MarkThenCut(at=0.5))
    model = net()
    session = prunus.Session(model, found, TASK, prunus.Budget(0.5), steps=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    session.attach(optimizer)

    def trained() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            squared(model).backward()
            optimizer.step()

    with pytest.raises(NothingScored, match="ControllerWorth scores nothing"):
        trained()
    assert session.step == 8 and not session.running.get("controller")


def test_settings_that_cannot_be() -> None:
    for wrong in ({"until": 0.05}, {"every": 0}, {"tau": 0.0}, {"strength": -1.0}):
        with pytest.raises(SpecError, match="ControllerWorth"):
            ControllerWorth(**wrong)
    with pytest.raises(SpecError, match="strengths"):
        MarkedThreshold(strength=(1.0, -1.0))
    with pytest.raises(SpecError, match="until"):
        MarkThenCut(at=0.5, cut=0.6, until=0.7)
    assert [e.step for e in MarkThenCut(at=0.2, cut=1.0, again=3, until=0.5)(0.5, 100)] == [20, 30, 40, 50, 100]
    assert [e.step for e in MarkThenCut(at=0.2, cut=1.0, until=0.5)(0.5, 100)] == [20, 100]
