"""Blocks of token networks, `[b, t, c]` to `[b, t, out]`, beside attention."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.fuzz.pieces import TOKEN_NORMS, Block, LayerScale, act, norm1d


class FeedForward(Block):
    def __init__(self, c: int, inner: int, norm: str, kind: str, scale: bool, post: bool) -> None:
        super().__init__()
        self.norm, self.a, self.b = norm1d(norm, c), nn.Linear(c, inner), nn.Linear(inner, c)
        self.act, self.drop, self.post = act(kind), nn.Dropout(0.1), post
        self.scale, self.out = LayerScale(c) if scale else nn.Identity(), c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {
            "inner": r.choice((12, 16, 24)), "norm": r.choice(TOKEN_NORMS), "kind": r.choice(("gelu", "relu", "silu")),
            "scale": r.random() < 0.3, "post": r.random() < 0.3,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(self.b(self.drop(self.act(self.a(x if self.post else self.norm(x))))))
        return self.norm(x + y) if self.post else x + y


class GatedFeedForward(Block):
    """SwiGLU and its relatives: two projections, or one that is taken apart."""

    def __init__(self, c: int, inner: int, style: str, norm: str) -> None:
        super().__init__()
        self.style, self.inner, self.norm, self.out = style, inner, norm1d(norm, c), c
        self.gate, self.up, self.down = nn.Linear(c, inner), nn.Linear(c, inner, bias=False), nn.Linear(inner, c)
        self.both = nn.Linear(c, 2 * inner)

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {
            "inner": r.choice((8, 12, 20)), "style": r.choice(("two", "chunk", "split", "glu", "slice", "interleaved")),
            "norm": r.choice(TOKEN_NORMS),
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        if self.style == "two":
            y = F.silu(self.gate(h)) * self.up(h)
        elif self.style == "glu":
            y = F.glu(self.both(h), dim=-1)
        elif self.style == "interleaved":
            z = self.both(h)
            y = F.gelu(z[..., ::2]) * z[..., 1::2]
        else:
            z = self.both(h)
            if self.style == "chunk":
                u, v = z.chunk(2, dim=-1)
            elif self.style == "split":
                u, v = torch.split(z, [self.inner, self.inner], dim=-1)
            else:
                u, v = z[..., : self.inner], z[..., self.inner :]
            y = F.silu(u) * v
        return x + self.down(y)


class Mixer(Block):
    """Tokens mixed by a linear layer over time (Mixer, gMLP)."""

    def __init__(self, c: int, time: int, style: str) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(c), nn.Linear(time, 10), nn.Linear(10, time)
        self.u, self.w, self.spatial = nn.Linear(c, 16), nn.Linear(8, c), nn.Conv1d(time, time, 1)
        self.inner, self.style, self.out = nn.LayerNorm(8), style, c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"time": 6, "style": r.choice(("mixer", "gmlp"))}

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "mixer":
            return x + self.b(F.gelu(self.a(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        u, v = F.gelu(self.u(self.norm(x))).chunk(2, dim=-1)
        return x + self.w(u * self.spatial(self.inner(v)))


class Recurrent(Block):
    """LSTM and GRU: the layers, and cells in a loop."""

    def __init__(self, c: int, hidden: int, style: str) -> None:
        super().__init__()
        self.style, self.hidden = style, hidden
        kinds: dict[str, Any] = {
            "lstm": lambda: nn.LSTM(c, hidden, batch_first=True),
            "two layers": lambda: nn.LSTM(c, hidden, num_layers=2, batch_first=True),
            "both ways": lambda: nn.GRU(c, hidden, batch_first=True, bidirectional=True),
            "gru": lambda: nn.GRU(c, hidden, batch_first=True),
            "gru cell": lambda: nn.GRUCell(c, hidden),
            "lstm cell": lambda: nn.LSTMCell(c, hidden),
            "by hand": lambda: nn.Linear(c + hidden, 4 * hidden),
        }
        self.cell = kinds[style]()
        self.b, self.out = nn.Linear(hidden * (2 if style == "both ways" else 1), c), c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        styles = ("lstm", "two layers", "both ways", "gru", "gru cell", "lstm cell", "by hand")
        return {"hidden": r.choice((8, 10)), "style": r.choice(styles)}

    def forward(self, x: Tensor) -> Tensor:
        if self.style in ("lstm", "two layers", "both ways", "gru"):
            return x + self.b(self.cell(x)[0])
        h, c = x.new_zeros(x.shape[0], self.hidden), x.new_zeros(x.shape[0], self.hidden)
        outputs = []
        for step in x.unbind(1):
            if self.style == "gru cell":
                h = self.cell(step, h)
            elif self.style == "lstm cell":
                h, c = self.cell(step, (h, c))
            else:
                i, f, g, o = self.cell(torch.cat([step, h], 1)).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            outputs.append(self.b(h))
        return x + torch.stack(outputs, 1)


class Convolved(Block):
    """A depthwise convolution over time between two gates (Mamba's outer shape, Conformer)."""

    def __init__(self, c: int, inner: int, style: str) -> None:
        super().__init__()
        self.inner, self.style, self.norm, self.out = inner, style, norm1d("rms", c), c
        self.a, self.conv = nn.Linear(c, 2 * inner, bias=False), nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.bn, self.b = nn.BatchNorm1d(inner), nn.Linear(inner, c)

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"inner": r.choice((8, 12)), "style": r.choice(("gate", "glu", "bn"))}

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        z = self.a(self.norm(x))
        if self.style == "glu":
            u, gate = F.glu(z, -1), None
        else:
            u, gate = z.split([self.inner, self.inner], -1)
        y = self.conv(u.transpose(1, 2))[..., :t]
        y = F.silu(self.bn(y) if self.style == "bn" else y).transpose(1, 2)
        return x + self.b(y if gate is None else y * F.silu(gate))


class Experts(Block):
    """A soft mixture: every expert runs, a router weighs them."""

    def __init__(self, c: int, experts: int, fused: bool) -> None:
        super().__init__()
        self.router, self.fused, self.out = nn.Linear(c, experts), fused, c
        if fused:
            self.up = nn.Parameter(torch.randn(experts, c, 10) * 0.2)
            self.down = nn.Parameter(torch.randn(experts, 10, c) * 0.2)
        else:
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(c, 10), nn.ReLU(), nn.Linear(10, c)) for _ in range(experts)
            )

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"experts": r.choice((2, 3)), "fused": r.random() < 0.5}

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.fused:
            y = torch.einsum("btc,ech->bteh", x, self.up)
            return x + torch.einsum("bteh,ehc,bte->btc", F.relu(y), self.down, weights)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return x + (outputs * weights.unsqueeze(2)).sum(-1)


class Einsum(Block):
    """Projections with heads as an axis of their own parameter."""

    def __init__(self, c: int, heads: int, style: str) -> None:
        super().__init__()
        self.wi, self.wo = nn.Parameter(torch.randn(c, heads, 4) * 0.3), nn.Parameter(torch.randn(heads, 4, c) * 0.3)
        self.bias, self.style, self.out = nn.Parameter(torch.zeros(heads, 4)), style, c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"heads": r.choice((2, 3)), "style": r.choice(("einsum", "flat"))}

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "einsum":
            y = torch.einsum("btc,chd->bthd", x, self.wi) + self.bias
            return x + torch.einsum("bthd,hdc->btc", torch.tanh(y), self.wo)
        y = torch.tanh(x @ self.wi.flatten(1) + self.bias.flatten())
        return x + y @ self.wo.flatten(0, 1)


class Modulated(Block):
    """adaLN: shift, scale and gates from a pooled condition."""

    def __init__(self, c: int, style: str) -> None:
        super().__init__()
        self.norm, self.condition = nn.LayerNorm(c, elementwise_affine=False), nn.Linear(c, 3 * c)
        self.a, self.b, self.style, self.out = nn.Linear(c, 12), nn.Linear(12, c), style, c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("chunk", "view"))}

    def forward(self, x: Tensor) -> Tensor:
        m = self.condition(F.silu(x.mean(1)))
        if self.style == "chunk":
            shift, scale, gate = m.unsqueeze(1).chunk(3, dim=-1)
        else:
            shift, scale, gate = m.view(x.shape[0], 1, 3, -1).unbind(2)
        return x + gate * self.b(F.gelu(self.a(self.norm(x) * (1 + scale) + shift)))


class LowRank(Block):
    """A low-rank side path, with the module called twice or its weight used transposed."""

    def __init__(self, c: int, style: str) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(c, c), nn.Linear(c, 4, bias=False), nn.Linear(4, c, bias=False)
        self.style, self.out = style, c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("lora", "twice", "transposed"))}

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "lora":
            return self.base(x) + 2.0 * self.b(self.a(x))
        if self.style == "twice":
            return self.base(F.relu(self.base(x))) + self.b(self.a(x))
        return x + F.linear(F.gelu(self.a(x)), self.a.weight.t())


class Project(Block):
    """A new width, sometimes from two halves."""

    def __init__(self, c: int, out: int, style: str) -> None:
        super().__init__()
        self.a, self.u, self.v = nn.Linear(c, out), nn.Linear(c, out // 2), nn.Linear(c, out // 2)
        self.style, self.out = style, out

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"out": r.choice((8, 12, 16)), "style": r.choice(("linear", "cat", "stack"))}

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "linear":
            return self.a(x)
        parts = [self.u(x), torch.tanh(self.v(x))]
        return torch.cat(parts, -1) if self.style == "cat" else torch.stack(parts, -1).flatten(-2)


TOKEN_BLOCKS: tuple[type[Block], ...] = (
    FeedForward, GatedFeedForward, Mixer, Recurrent, Convolved, Experts, Einsum, Modulated, LowRank, Project,
)  # fmt: skip
