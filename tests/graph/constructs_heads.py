"""Heads as networks of language write them, one construct each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.nets import Case, Net, tokens

Attend = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
QKV = ("q.weight", "k.weight", "v.weight")


class Heads(nn.Module):
    """Four heads of width 6 with two heads of keys and values, and something between projections and products."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], fused: int = 0, keys: int = 2, **more: Any) -> None:
        super().__init__()
        self.function, self.heads, self.keys, self.width, self.share = forward, 4, keys, 6, 4 // keys
        if fused:
            self.qkv = nn.Linear(8, fused)
        else:
            self.q, self.k, self.v = nn.Linear(8, 24), nn.Linear(8, 6 * keys), nn.Linear(8, 6 * keys)
        self.out, self.fc = nn.Linear(24, 8), nn.Linear(8, 3)
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(x + self.out(self.function(self, x).flatten(2))))  # type: ignore[no-any-return]

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[batch, heads, positions, width]`."""
        b, t, _ = x.shape
        q, k, v = ((p(x)).view(b, t, -1, self.width).transpose(1, 2) for p in (self.q, self.k, self.v))
        return q, k, v


def products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """By hand, so that one head of keys is broadcast."""
    return ((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v).transpose(1, 2)


def partly_rotated(s: Any, x: Tensor) -> Tensor:
    """Rotary embeddings of the first positions of a head, of which there are as many as it is wide (Phi-3)."""
    q, k, v = s.parts(x)
    n = s.width
    q, k = (torch.cat([p[..., :n] * 2, p[..., n:]], -1) for p in (q, k))
    return products(q, k.repeat_interleave(s.share, 1), v.repeat_interleave(s.share, 1))


def sliced(s: Any, x: Tensor) -> Tensor:
    """Queries, keys and values one after the other in one projection (Phi-3)."""
    qkv, b, t = s.qkv(x), x.shape[0], x.shape[1]
    end, more = s.heads * s.width, s.keys * s.width
    q = qkv[..., :end].view(b, t, -1, s.width).transpose(1, 2)
    k = qkv[..., end : end + more].view(b, t, -1, s.width).transpose(1, 2)
    v = qkv[..., end + more :].view(b, t, -1, s.width).transpose(1, 2)
    return products(q, k.repeat_interleave(s.share, 1), v.repeat_interleave(s.share, 1))


def interleaved(s: Any, x: Tensor) -> Tensor:
    """Every head of keys behind the queries that share it: their number is a quotient plus two (Falcon)."""
    b, t, _ = x.shape
    qkv = s.qkv(x).view(b, t, -1, s.heads // s.keys + 2, s.width)
    q, k, v = qkv[:, :, :, :-2], qkv[:, :, :, [-2]], qkv[:, :, :, [-1]]
    k, v = torch.broadcast_to(k, q.shape), torch.broadcast_to(v, q.shape)
    return products(*(p.flatten(2, 3).transpose(1, 2) for p in (q, k, v)))


def multi_query(s: Any, x: Tensor) -> Tensor:
    """All queries share the last two heads (Shazeer 2019, arXiv:1911.02150, as in the first Falcon)."""
    b, t, _ = x.shape
    qkv = s.qkv(x).view(b, t, s.heads + 2, s.width)
    q, k, v = (p.transpose(1, 2) for p in (qkv[..., :-2, :], qkv[..., [-2], :], qkv[..., [-1], :]))
    return products(q, k, v)


def repeated(s: Any, x: Tensor) -> Tensor:
    """One head of keys and values, repeated as often as an attribute says (StarCoder)."""
    q, k, v = s.parts(x)
    k, v = (p[:, :, None].expand(-1, -1, s.share, -1, -1).flatten(1, 2) for p in (k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def disentangled(s: Any, x: Tensor) -> Tensor:
    """Queries times projected embeddings of positions, which come from parameters alone (DeBERTa)."""
    q, k, v = s.parts(x)
    t = x.shape[1]
    place = s.place(s.table[:t]).view(t, -1, s.width).transpose(0, 1)
    return products(q, k, v, q @ place.transpose(-2, -1))


def flattened(s: Any, x: Tensor) -> Tensor:
    """Projections with an axis for heads and one for their width, which are summed over both (XLNet)."""
    q, k, v = (torch.einsum("bth,hnd->btnd", x, w) for w in (s.q.weight3, s.k.weight3, s.v.weight3))
    scores = torch.einsum("bind,bjnd->bnij", q + s.bias, k).softmax(-1)
    y = torch.einsum("bnij,bjnd->bind", scores, v)
    return s.fc(F.relu(x + torch.einsum("bind,hnd->bih", y, s.o.weight3)))  # type: ignore[no-any-return]


def flat() -> nn.Module:
    net = Net(flattened, q=Cube(), k=Cube(), v=Cube(), o=Cube(), fc=nn.Linear(8, 3))
    net.bias = nn.Parameter(torch.randn(4, 6))
    return net


class Cube(nn.Module):
    """A parameter `[in, heads, width]`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight3 = nn.Parameter(torch.randn(8, 4, 6))


def segments(s: Any, x: Tensor) -> Tensor:
    """A mask repeated over as many heads as there are queries, which chooses between scores (Funnel)."""
    q, k, v = s.parts(x)
    same = (x[:, :, 0] > 0)[:, None, None].expand(x.shape[0], q.shape[1], x.shape[1], x.shape[1])
    two = torch.einsum("bhtd,shd->bhts", q, s.segment)
    one, other = two.split(1, -1)
    return products(q, k, v, torch.where(same, one.expand(same.shape), other.expand(same.shape)))


def copied(s: Any, x: Tensor) -> Tensor:
    """A bias for every head by `repeat` (ProphetNet)."""
    q, k, v = s.parts(x)
    near = -(torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs().to(x.dtype)
    return products(q, k, v, near[None, None].repeat(1, s.heads, 1, 1))


def sent(s: Any, x: Tensor) -> Tensor:
    """Rows sorted by expert and cut into one part for each, of which some are empty (JetMoE)."""
    flat = x.reshape(-1, 8)
    parts = torch.split(flat, [0, flat.shape[0]])
    hidden = torch.cat([F.linear(part, s.up[i]) for i, part in enumerate(parts)])
    parts = torch.split(F.relu(hidden), [0, flat.shape[0]])
    return s.fc(torch.cat([F.linear(part, s.down[i]) for i, part in enumerate(parts)]).view(x.shape))  # type: ignore[no-any-return]


def experts() -> nn.Module:
    net = Net(sent, fc=nn.Linear(8, 3))
    net.up, net.down = nn.Parameter(torch.randn(2, 12, 8)), nn.Parameter(torch.randn(2, 8, 12))
    return net


HEADS = [
    Case("partly rotated heads", lambda: Heads(partly_rotated), tokens(), QKV),
    Case("slices of one projection", lambda: Heads(sliced, 48), tokens(), ("qkv.weight",)),
    Case("keys behind their queries", lambda: Heads(interleaved, 48), tokens(), ("qkv.weight",)),
    Case("one head of keys by index", lambda: Heads(multi_query, 36), tokens(), ("qkv.weight",)),
    Case("one head of keys repeated", lambda: Heads(repeated, keys=1), tokens(), ("q.weight",), ("k.weight",)),
    Case("positions projected into heads",
         lambda: Heads(disentangled, keys=4, place=nn.Linear(8, 24), table=nn.Parameter(torch.randn(9, 8))), tokens(),
         QKV),
    Case("projections with two axes", flat, tokens(), ("q.weight3", "k.weight3", "v.weight3")),
    Case("a choice for every head", lambda: Heads(segments, keys=4, segment=nn.Parameter(torch.randn(2, 4, 6))),
         tokens(), QKV),
    Case("a bias repeated for every head", lambda: Heads(copied, keys=4), tokens(), QKV),
    Case("experts without rows", experts, tokens(), ("up",)),
]  # fmt: skip
