"""Ties that one run does not show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.graph import rules, trace
from prunus.graph.flow import Flow
from prunus.graph.running import call, quiet
from prunus.graph.unseen import tie_unseen
from tests.graph.constructs_recurrent import recurrent

assert rules


class Routed(nn.Module):
    """Every token goes to one expert; experts without tokens do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(3))
        self.other = nn.ModuleList([nn.Linear(6, 7)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(y + self.experts[1](y))


def run(model: nn.Module, x: Tensor) -> Flow:
    flow = Flow(model)
    with quiet(model), flow:
        call(model, x, flow.path)
    return flow


def labels(flow: Flow, tensor: Tensor, dim: int) -> list[int]:
    found, _ = flow.atoms.solve()
    return [int(found[a]) for p in flow.info[tensor].planes if p.shape[dim] > 1 for a in p.reshape(-1).tolist()]


def test_experts_that_no_token_reached() -> None:
    model = Routed()
    flow = run(model, torch.randn(2, 4))
    idle = model.experts[2]
    assert isinstance(idle, nn.Sequential)
    before = labels(flow, idle[0].weight, 1)
    tie_unseen(flow)
    stream = labels(flow, model.a.weight, 0)
    assert before != stream
    assert labels(flow, idle[0].weight, 1) == labels(flow, idle[2].weight, 0) == labels(flow, idle[2].bias, 0) == stream
    # What is masked with a unit is masked here too.
    axes = [i for i, a in enumerate(flow.atoms.axes) if a.name == "experts.2.0.weight"]
    assert [flow.roles[i] for i in axes] == ["out", "in"]
    # A module that is like nothing that ran stays by itself.
    assert len(set(labels(flow, model.other[0].weight, 1)) & set(stream)) == 0


@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_single_step(cls: type[nn.RNNBase]) -> None:
    model = recurrent(cls, num_layers=2)()
    flow = run(model, torch.randn(1, 2, 8))
    tie_unseen(flow)
    weight = model.r.weight_hh_l1
    rows, columns = labels(flow, weight, 0), labels(flow, weight, 1)
    assert rows == columns * (len(rows) // len(columns)) and len(set(columns)) == 5


def test_projection() -> None:
    model = recurrent(nn.LSTM, 12, proj_size=4)()
    flow = run(model, torch.randn(1, 2, 8))
    tie_unseen(flow)
    assert labels(flow, model.r.weight_hr_l0, 0) == labels(flow, model.r.weight_hh_l0, 1)
    assert labels(flow, model.r.weight_hh_l0, 0) == labels(flow, model.r.weight_hr_l0, 1) * 4


class Supervised(nn.Module):
    """Deep supervision: a side head is always computed, and returned in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head, self.side = (nn.Linear(i, o) for i, o in ((4, 8), (8, 8), (8, 3), (8, 3)))

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).relu()
        side, out = self.side(y), self.head(self.b(y).relu())
        return (out, side) if self.training else out


def test_what_only_training_reads_keeps_its_shape() -> None:
    structure = trace(Supervised(), torch.randn(2, 4))
    assert [g.name for g in structure.groups] == ["a", "b"]
    assert structure.frozen["side.weight"] == "an output of the model"
