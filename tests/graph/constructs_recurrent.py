"""Recurrent layers, cells and loops written by hand, one construct each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.graph.nets import Case, Net, tokens


def recurrent(cls: Callable[..., nn.Module], hidden: int = 5, **kwargs: Any) -> Callable[[], nn.Module]:
    """A linear layer, the recurrent one, and a linear layer."""
    width = kwargs.get("proj_size", hidden) * (2 if kwargs.get("bidirectional") else 1)
    return lambda: Net(
        lambda s, x: s.b(s.r(s.a(x))[0]), a=nn.Linear(8, 6), r=cls(6, hidden, **kwargs), b=nn.Linear(width, 4)
    )


def last_state(s: Any, x: Tensor) -> Tensor:
    h = s.r(s.a(x))[1]
    return s.b(h[-1] if isinstance(h, Tensor) else h[0][-1] + h[1][-1])


def given_state(s: Any, x: Tensor) -> Tensor:
    z = s.z(x.mean(1)).unsqueeze(0)
    return s.b(s.r(s.a(x), (torch.tanh(z), z))[0])


def encoder_decoder(s: Any, x: Tensor) -> Tensor:
    return s.b(s.d(x, s.r(s.a(x))[1])[0])


def packed(s: Any, x: Tensor) -> Tensor:
    h = s.r(pack_padded_sequence(s.a(x), torch.full((x.shape[0],), 3), batch_first=True))[1]
    return s.b(h[-1])


def padded(s: Any, x: Tensor) -> Tensor:
    y, _ = s.r(pack_padded_sequence(s.a(x), torch.full((x.shape[0],), 3), batch_first=True))
    return s.b(pad_packed_sequence(y, batch_first=True)[0])


def lstm_loop(s: Any, x: Tensor) -> Tensor:
    state, seen = None, []
    for step in s.a(x).unbind(1):
        state = s.r(step, state)
        seen.append(state[0])
    return s.b(torch.stack(seen, 1))


def gru_loop(s: Any, x: Tensor) -> Tensor:
    h = s.r(s.a(x[:, 0]))
    for t in range(1, x.shape[1]):
        h = s.r(s.a(x[:, t]), h)
    return s.b(h)


def by_hand(s: Any, x: Tensor) -> Tensor:
    """An LSTM of two packed linear layers, started from what the first step gives."""
    h = torch.tanh(s.a(x[:, 0]))
    c = torch.zeros_like(h)
    for t in range(x.shape[1]):
        i, f, g, o = (s.x(x[:, t]) + s.h(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return s.b(h)


def gru_by_hand(s: Any, x: Tensor) -> Tensor:
    """A GRU that joins state and input before each gate."""
    h = torch.tanh(s.a(x[:, 0]))
    for t in range(x.shape[1]):
        both = torch.cat([x[:, t], h], -1)
        z, r = torch.sigmoid(s.z(both)), torch.sigmoid(s.r(both))
        h = (1 - z) * h + z * torch.tanh(s.n(torch.cat([x[:, t], r * h], -1)))
    return s.b(h)


class Elman(nn.Module):
    """A recurrence of raw parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6, 6) / 3)
        self.start, self.out = nn.Parameter(torch.randn(6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(x.shape[0], -1)
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] @ self.w + h @ self.u)
        return self.out(h)


class Start(nn.Module):
    """An LSTM whose first state is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.out = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)
        self.h, self.c = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        state = self.h.expand(1, x.shape[0], 6).contiguous(), self.c.expand(1, x.shape[0], 6).contiguous()
        return self.out(self.r(x, state)[0])


class Attended(nn.Module):
    """Additive attention over the steps of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.k, self.v = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 5), nn.Linear(5, 1)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.e(x)
        return self.out((y * self.v(torch.tanh(self.k(y))).softmax(1)).sum(1))


_UNITS = ("a.weight", "r.weight_ih_l0", "r.weight_hh_l0")
_CELL = ("a.weight", "r.weight_ih", "r.weight_hh")

RECURRENT: list[Case] = [
    Case("LSTM", recurrent(nn.LSTM), tokens(), _UNITS, ("b.weight",)),
    Case("LSTM batch first", recurrent(nn.LSTM, batch_first=True), tokens(), _UNITS),
    Case(
        "LSTM two layers both ways",
        recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
        tokens(),
        (*_UNITS, "r.weight_ih_l1_reverse", "r.weight_hh_l1_reverse"),
    ),
    Case("LSTM without biases", recurrent(nn.LSTM, bias=False), tokens(), _UNITS),
    Case("LSTM projection", recurrent(nn.LSTM, 12, proj_size=4), tokens(), (*_UNITS, "r.weight_hr_l0")),
    Case("GRU", recurrent(nn.GRU, batch_first=True), tokens(), _UNITS),
    Case("GRU one step", recurrent(nn.GRU), tokens(), _UNITS),
    Case(
        "GRU two layers both ways",
        recurrent(nn.GRU, num_layers=2, bidirectional=True),
        tokens(),
        (*_UNITS, "r.weight_hh_l1_reverse"),
    ),
    Case("RNN tanh", recurrent(nn.RNN, num_layers=2, batch_first=True), tokens(), (*_UNITS, "r.weight_hh_l1")),
    Case("RNN relu", recurrent(nn.RNN, nonlinearity="relu", bidirectional=True), tokens(), _UNITS),
    Case(
        "LSTM last state",
        lambda: Net(last_state, a=nn.Linear(8, 6), r=nn.LSTM(6, 5, 2, batch_first=True), b=nn.Linear(5, 4)),
        tokens(),
        _UNITS,
    ),
    Case(
        "LSTM given state",
        lambda: Net(
            given_state, z=nn.Linear(8, 5), a=nn.Linear(8, 6), r=nn.LSTM(6, 5, batch_first=True), b=nn.Linear(5, 4)
        ),
        tokens(),
        (*_UNITS, "z.weight"),
    ),
    Case("LSTM learned state", Start, tokens(), (), ("r.weight_hh_l0",)),
    Case(
        "encoder decoder",
        lambda: Net(
            encoder_decoder,
            a=nn.Linear(8, 6),
            r=nn.LSTM(6, 5, batch_first=True),
            d=nn.LSTM(8, 5, batch_first=True),
            b=nn.Linear(5, 4),
        ),
        tokens(),
        (*_UNITS, "d.weight_hh_l0"),
    ),
    Case(
        "packed sequence",
        lambda: Net(packed, a=nn.Linear(8, 6), r=nn.GRU(6, 5, batch_first=True), b=nn.Linear(5, 4)),
        tokens(),
        _UNITS,
    ),
    Case(
        "padded sequence",
        lambda: Net(padded, a=nn.Linear(8, 6), r=nn.LSTM(6, 5, batch_first=True), b=nn.Linear(5, 4)),
        tokens(),
        ("a.weight",),
    ),
    Case(
        "LSTMCell", lambda: Net(lstm_loop, a=nn.Linear(8, 6), r=nn.LSTMCell(6, 5), b=nn.Linear(5, 4)), tokens(), _CELL
    ),
    Case("GRUCell", lambda: Net(gru_loop, a=nn.Linear(8, 6), r=nn.GRUCell(6, 5), b=nn.Linear(5, 4)), tokens(), _CELL),
    Case("RNNCell", lambda: Net(gru_loop, a=nn.Linear(8, 6), r=nn.RNNCell(6, 5), b=nn.Linear(5, 4)), tokens(), _CELL),
    Case(
        "LSTM by hand",
        lambda: Net(by_hand, a=nn.Linear(8, 6), x=nn.Linear(8, 24), h=nn.Linear(6, 24), b=nn.Linear(6, 4)),
        tokens(),
        ("a.weight", "x.weight", "h.weight"),
    ),
    Case(
        "GRU by hand",
        lambda: Net(
            gru_by_hand,
            a=nn.Linear(8, 6),
            z=nn.Linear(14, 6),
            r=nn.Linear(14, 6),
            n=nn.Linear(14, 6),
            b=nn.Linear(6, 4),
        ),
        tokens(),
        ("a.weight", "z.weight", "r.weight", "n.weight"),
    ),
    Case("raw recurrence", Elman, tokens(), ("w", "u"), ("out.weight",)),
    Case("attention over steps", Attended, tokens(), ("e.weight_hh_l0", "k.weight"), ("out.weight",)),
    Case(
        "convolution, then LSTM",
        lambda: Net(
            lambda s, x: s.b(s.r(F.relu(s.a(x)).transpose(1, 2))[0][:, -1]),
            a=nn.Conv1d(5, 6, 3, padding=1),
            r=nn.LSTM(6, 5, batch_first=True),
            b=nn.Linear(5, 4),
        ),
        tokens(),
        _UNITS,
    ),
    Case(
        "embedding, then GRU",
        lambda: Net(
            lambda s, x: s.b(s.r(s.a(x))[0]),
            a=nn.Embedding(20, 6),
            r=nn.GRU(6, 5, batch_first=True),
            b=nn.Linear(5, 4),
        ),
        lambda: torch.randint(0, 20, (2, 5)),
        _UNITS,
    ),
]
