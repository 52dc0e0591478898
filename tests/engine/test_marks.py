"""Events that only mark: what was cut before stays cut, and nothing else is touched until the choice is carried out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus import Event, methods
from prunus.core.part import Schedule
from prunus.parts.penalty import GrowingL2

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = (X[:, 0] > 0).long()
TASK = prunus.Task(loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), train=[(X, Y)])


@dataclass(frozen=True)
class Increments(Schedule):
    """Mark a quarter, cut it, mark another quarter, cut that."""

    def __call__(self, density: float, steps: int) -> tuple[Event, ...]:
        first = (1 + density) / 2
        return (
            Event(0, first, mark=True),
            Event(steps // 4, first),
            Event(steps // 2, density, mark=True),
            Event(steps, density),
        )


RECIPE = replace(
    methods.gradual_magnitude, name="increments", schedule=Increments(), penalty=GrowingL2(step=0.05, every=1)
)


def session() -> tuple[prunus.Session, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    return prunus.Session(model, RECIPE, TASK, prunus.Budget(0.5), steps=16), model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()


def zeros(model: nn.Module) -> float:
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    return sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)


def test_what_was_cut_stays_cut_while_more_is_marked() -> None:
    run, model, optimizer = session()
    run.attach(optimizer)
    assert run.marking and zeros(model) == 0
    expected = [0.0] * 3 + [0.25] * 12 + [0.5]
    for step, share in enumerate(expected, start=1):
        train(model, optimizer, 1)
        assert zeros(model) == pytest.approx(share, abs=0.01), step
        assert run.marking == (step < 4 or 8 <= step < 16)
    marked = run.history[2]
    assert marked["mark"] and marked["density"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("stop", [2, 6, 10])
def test_a_run_that_stops_between_a_mark_and_its_cut_goes_on_bit_by_bit(stop: int) -> None:
    run, model, optimizer = session()
    run.attach(optimizer)
    train(model, optimizer, stop)
    state = run.state_dict()
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    memory = copy.deepcopy(optimizer.state_dict())
    again, twin, other = session()
    twin.load_state_dict(weights)
    other.load_state_dict(memory)
    again.load_state_dict(state)
    again.attach(other)
    for net, opt in ((model, optimizer), (twin, other)):
        train(net, opt, 16 - stop)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(run.masks[n], again.masks[n]) for n in run.masks)
