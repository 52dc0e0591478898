"""Recurrent modules after compaction, and the fused kernels that a CPU does not run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.graph import compact, replay_, trace
from prunus.graph.flow import RULES, Call, Flow
from tests.graph.constructs_recurrent import recurrent
from tests.graph.proof import some


def one(flow: Flow, name: str, args: tuple[Any, ...], out: Any) -> None:
    """What a rule does when an operation with these arguments gave `out`."""
    with torch.no_grad():
        RULES[name](Call(flow, name, torch.relu, args, {}, out, ""))


def units(flow: Flow, tensor: Tensor, dim: int) -> set[int]:
    """The labels along one axis of a tensor, without those that are frozen."""
    labels, removable = flow.atoms.solve()
    planes = [p for p in flow.info[tensor].planes if p.shape[dim] > 1]
    return {int(labels[a]) for p in planes for a in p.reshape(-1).tolist() if removable[a]}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_stale_weights(bidirectional: bool) -> None:
    model = recurrent(nn.LSTM, num_layers=2, batch_first=True, bidirectional=bidirectional)().eval()
    x = torch.randn(2, 5, 8)
    structure = trace(model, x)
    small, edits = compact(model, structure.groups, some(structure, 0.4), x)
    r: Any = small.r
    assert all(a is getattr(r, n) for a, n in zip(r._flat_weights, r._flat_weights_names, strict=True))
    r.flatten_parameters()
    assert r.hidden_size == r.weight_hh_l0.shape[1] == 3 and r.input_size == r.weight_ih_l0.shape[1] == 4
    # A training step reaches the weights that are saved.
    small.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    fresh = replay_(recurrent(nn.LSTM, num_layers=2, batch_first=True, bidirectional=bidirectional)(), edits).eval()
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(x), small.eval()(x))


def test_fused_and_unfused_agree() -> None:
    """On a CPU with oneDNN float32 runs one kernel per layer, float64 goes step by step: groups and costs agree."""
    model = recurrent(nn.LSTM, num_layers=2, batch_first=True, bidirectional=True)()
    structures = [
        trace(m, torch.randn(1, 5, 8, dtype=d))
        for m, d in ((model, None), (copy.deepcopy(model).double(), torch.float64))
    ]
    fused, unfused = ([(g.name, g.units, {(m.param, m.dim) for m in g.members}) for g in s.groups] for s in structures)
    assert fused == unfused
    assert structures[0].macs == structures[1].macs
    assert structures[0].macs["r.weight_hh_l1"] == 5 * 20 * 5


@pytest.mark.parametrize(("mode", "gates"), [(1, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("lengths", [[], [2, 2, 1]])
def test_cudnn(mode: int, gates: int, lengths: list[int]) -> None:
    kind: Any = {1: nn.RNN, 2: nn.LSTM, 3: nn.GRU}[mode]
    model = kind(6, 4, num_layers=2, bidirectional=True)
    flow = Flow(model)
    x = torch.randn(5, 6) if lengths else torch.randn(3, 2, 6)
    h = torch.zeros(4, 2, 4)
    size = flow.atoms.axis("hidden_size", None, 4)
    flow.record(h, [size.reshape(1, 1, 4)])
    c = h if mode == 2 else None
    y = torch.zeros(*x.shape[:-1], 8)
    out = (y, torch.zeros(4, 2, 4), torch.zeros(4, 2, 4), torch.zeros(0), torch.zeros(0))
    args = (x, model._flat_weights, 4, None, h, c, mode, 4, 0, 2, False, 0.0, False, True, lengths, None)
    one(flow, "_cudnn_rnn", args, out)
    assert len(units(flow, y, y.dim() - 1)) == 4
    assert units(flow, y, y.dim() - 1) == units(flow, model.weight_ih_l1_reverse, 0) == units(flow, out[1], 2)
    # The input of the first layer is a fixed tensor; the second layer takes both directions of the first.
    assert not units(flow, model.weight_ih_l0, 1)
    assert units(flow, model.weight_ih_l1, 1) == units(flow, model.weight_hh_l0, 1)
    steps = 5 if lengths else 6
    assert flow.macs["weight_hh_l1"] == steps * gates * 4 * 4
    assert flow.macs["weight_ih_l1"] == steps * gates * 4 * 8


def test_fused_cells() -> None:
    model = nn.ModuleList([nn.Linear(5, 16), nn.Linear(4, 16), nn.Linear(5, 12), nn.Linear(4, 12)])
    flow = Flow(model)
    weights: list[Any] = [layer.weight for layer in model]
    biases: list[Any] = [layer.bias for layer in model]
    state = torch.randn(2, 4)
    flow.record(state, [flow.atoms.axis("hidden_size", None, 4).reshape(1, 4)])
    with flow, torch.no_grad():
        gates = [torch.randn(2, 5) @ weights[0].t(), state @ weights[1].t()]
        more = [torch.randn(2, 5) @ weights[2].t(), state @ weights[3].t()]
    h, c, g = torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4)
    one(flow, "_thnn_fused_lstm_cell", (*gates, state, biases[0], biases[1]), (h, c, torch.zeros(2, 16)))
    one(flow, "_thnn_fused_gru_cell", (*more, state, biases[2], biases[3]), (g, torch.zeros(2, 20)))
    found = units(flow, h, 1)
    assert len(found) == 4
    assert found == units(flow, c, 1) == units(flow, g, 1)
    assert all(units(flow, t, 0) == found for t in (*weights, *biases))
