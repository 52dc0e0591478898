"""Rules for recurrent cells.

PyTorch runs a recurrent layer either step by step in ordinary operations, which need no rule, or in one fused kernel.
A fused kernel is explained by what it computes: two of its steps are run in ordinary operations under the same flow
(two, because the second closes the recurrence), and its outputs carry what these carry.

Hidden units are the same positions in every gate, layer and direction of one module, since the module keeps a single
`hidden_size`, by which the zeros that it starts from are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.graph.flow import Call, rule, tensors_in

_KINDS = ("relu", "tanh", "lstm", "gru")
"""The numbers by which fused kernels name the cell."""

_GATES = {"relu": 1, "tanh": 1, "lstm": 4, "gru": 3}


def explain(call: Call, compute: Callable[[], Any]) -> None:
    """Give the outputs of `call` what the outputs of `compute` carry; it is run under the flow of the call."""
    given, call.flow.lengths.pending = (
        call.flow.lengths.pending,
        None,
    )  # the integers that the fused operation was given are not these
    try:
        with call.flow:
            twins = list(tensors_in(compute()))
    finally:
        call.flow.lengths.pending = given
    for out, twin in zip(call.outputs, twins, strict=False):
        info = call.info(twin)
        call.give(out, list(info.planes), info.source)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def composite(call: Call) -> None:
    """These arrive whole only in inference mode; PyTorch itself says of what they are composed."""
    explain(call, lambda: call.func.decompose(*call.args, **call.kwargs))  # type: ignore[attr-defined]


@rule("mkldnn_rnn_layer")
def mkldnn_layer(call: Call) -> None:
    """One layer and direction of an LSTM on a CPU."""
    x, w_ih, w_hh, b_ih, b_hh, h, c = call.args[:7]
    biases = (b_ih, b_hh) if call.args[12] else (None, None)
    kind = _KINDS[call.args[9]]

    def compute() -> Any:
        if h.dim() == 2:
            return _layer(kind, x, (h, c), (w_ih, w_hh, *biases, None))
        y, *last = _layer(kind, x, (h.squeeze(0), c.squeeze(0)), (w_ih, w_hh, *biases, None))
        return y, *(state.unsqueeze(0) for state in last)

    explain(call, compute)
    _count_steps(call, x, w_hh, None)


@rule("_cudnn_rnn")
def cudnn(call: Call) -> None:
    """All layers and directions of a recurrent module on a GPU."""
    x, weights, stride, _, h, c, mode, _, _, layers, batch_first, _, _, bidirectional, lengths = call.args[:15]
    kind, directions = _KINDS[mode], 2 if bidirectional else 1
    if batch_first and not lengths:
        x = x.detach()

    def compute() -> Any:
        # Packed sequences are `[sum of lengths, features]`; which step a row belongs to does not matter here.
        y = x.unsqueeze(1) if lengths else x.transpose(0, 1) if batch_first else x
        last_h, last_c = [], []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                own = _named(weights, stride, layer * directions + direction)
                start = layer * directions + direction
                state = (h[start], None if c is None else c[start])
                if lengths:
                    state = tuple(None if s is None else s[:1] for s in state)  # type: ignore[assignment]
                output, *last = _layer(kind, y, state, own)
                outputs.append(output)
                last_h.append(last[0])
                last_c.append(last[-1])
            y = torch.cat(outputs, -1) if directions > 1 else outputs[0]
        y = y.squeeze(1) if lengths else y.transpose(0, 1) if batch_first else y
        states = (torch.stack(last_h), torch.stack(last_c)) if kind == "lstm" else (torch.stack(last_h),)
        return y, *states

    explain(call, compute)
    steps = x.transpose(0, 1) if batch_first and not lengths else x
    for i in range(layers * directions):
        own = _named(weights, stride, i)
        _count_steps(call, steps.unsqueeze(1) if lengths else steps, own[1], own[4])


@rule("_thnn_fused_lstm_cell")
def fused_lstm_cell(call: Call) -> None:
    """One step of an LSTM on a GPU; the products with both weights come in."""
    gates, more, c = call.args[:3]
    biases = call.get(3, "input_bias"), call.get(4, "hidden_bias")
    explain(call, lambda: _lstm(_biased(gates, biases[0]) + _biased(more, biases[1]), c))


@rule("_thnn_fused_gru_cell")
def fused_gru_cell(call: Call) -> None:
    """One step of a GRU on a GPU; the products with both weights come in."""
    gates, more, h = call.args[:3]
    biases = call.get(3, "input_bias"), call.get(4, "hidden_bias")
    explain(call, lambda: (_gru(_biased(gates, biases[0]), _biased(more, biases[1]), h),))


@rule("_pack_padded_sequence")
def pack(call: Call) -> None:
    """`[steps, batch, ...]` (or batch first) becomes `[sum of lengths, ...]`: the features stay where they are."""
    x = call.args[0]
    planes = []
    for plane in call.info(x).planes:
        fixed = call.flow.atoms.fix(plane, (0, 1), call.reason("packs sequences"))
        if fixed is not None:
            planes.append(fixed.squeeze(0))
    call.give(call.out[0], planes)


def _named(weights: Any, stride: int, i: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """`(w_ih, w_hh, b_ih, b_hh, w_hr)` of one layer and direction in the flat list of a module."""
    own = list(weights[i * stride : (i + 1) * stride])
    w_ih, w_hh, rest = own[0], own[1], own[2:]
    b_ih, b_hh = (rest[0], rest[1]) if len(rest) >= 2 else (None, None)
    return w_ih, w_hh, b_ih, b_hh, rest[-1] if len(rest) % 2 else None


def _layer(kind: str, x: Tensor, state: tuple[Tensor, Tensor | None], weights: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Two steps of one layer: an output that repeats the second step's, and its states."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    h, c = state
    entering = F.linear(x, w_ih, b_ih)[0]
    for _ in range(2):
        arriving = F.linear(h, w_hh, b_hh)
        if kind == "lstm":
            assert c is not None
            h, c = _lstm(entering + arriving, c)
            h = h if w_hr is None else F.linear(h, w_hr)
        elif kind == "gru":
            h = _gru(entering, arriving, h)
        else:
            h = torch.tanh(entering + arriving)
    y = h.unsqueeze(0).expand(x.shape[0], *h.shape)
    return (y, h, c) if c is not None and kind == "lstm" else (y, h)


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.split(gates.shape[-1] // 4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(entering: Tensor, arriving: Tensor, h: Tensor) -> Tensor:
    size = entering.shape[-1] // 3
    (r, z, n), (hr, hz, hn) = entering.split(size, -1), arriving.split(size, -1)
    fresh = (n + (r + hr).sigmoid() * hn).tanh()
    state: Tensor = (h - fresh) * (z + hz).sigmoid() + fresh
    return state


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def _count_steps(call: Call, x: Tensor, w_hh: Tensor, w_hr: Tensor | None) -> None:
    """Two steps were counted, `len(x)` are run."""
    for weight in (w_hh, w_hr):
        if weight is not None:
            call.flow.count(call.info(weight).source, (x.shape[0] - 2) * x.shape[1] * weight.numel())
