"""Attention by hand, `[b, t, c]` to `[b, t, c]`: heads from attributes, literals or -1, grouped queries, rotary."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.fuzz.pieces import TOKEN_NORMS, Block, norm1d


def weigh(q: Tensor, k: Tensor, v: Tensor, style: str, causal: bool = False) -> Tensor:
    """`softmax(q k / sqrt(d)) v` in one of three ways; `[b, heads, t, d]` each."""
    if style == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scale = q.shape[-1] ** -0.5
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale if style == "einsum" else q @ k.transpose(-2, -1) * scale
    if causal:
        t = q.shape[-2]
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    weights = scores.softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v) if style == "einsum" else weights @ v


HOW = ("matmul", "matmul", "sdpa", "einsum")


class Packed(Block):
    """One projection for queries, keys and values (ViT, GPT-2)."""

    def __init__(self, c: int, heads: int, dim: int, split: str, how: str, join: str, norm: str, bias: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dim = heads, dim, heads * dim
        self.split, self.how, self.join, self.out = split, how, join, c
        self.norm = norm1d(norm, c)
        self.qkv, self.proj = nn.Linear(c, 3 * self.dim, bias=bias), nn.Linear(self.dim, c)

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {
            "heads": r.choice((2, 4)), "dim": r.choice((2, 4)),
            "split": r.choice(("reshape", "chunk", "split", "minus one", "last", "unflatten")), "how": r.choice(HOW),
            "join": r.choice(("minus one", "attribute", "flatten")), "norm": r.choice(TOKEN_NORMS),
            "bias": r.random() < 0.7,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        y = self.qkv(self.norm(x))
        if self.split == "reshape":
            q, k, v = y.reshape(b, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        elif self.split == "minus one":
            q, k, v = y.reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.split == "last":  # heads first, then q, k, v within each head (GPT-NeoX)
            q, k, v = y.view(b, t, self.heads, 3 * self.head_dim).transpose(1, 2).chunk(3, dim=-1)
        elif self.split == "unflatten":
            q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = y.chunk(3, dim=-1) if self.split == "chunk" else y.split(self.dim, dim=2)
            q = q.view(b, t, self.heads, self.head_dim).transpose(1, 2)
            k = k.view(b, t, self.heads, self.head_dim).transpose(1, 2)
            v = v.view(b, t, self.heads, self.head_dim).transpose(1, 2)
        z = weigh(q, k, v, self.how).transpose(1, 2)
        if self.join == "attribute":
            z = z.contiguous().view(b, t, self.dim)
        else:
            z = z.flatten(2) if self.join == "flatten" else z.reshape(b, t, -1)
        return x + self.proj(z)


class Literal(Block):
    """Separate projections; the number of heads or their size is written into the forward."""

    def __init__(self, c: int, style: str, how: str) -> None:
        super().__init__()
        self.style, self.how, self.out = style, how, c
        self.q, self.k, self.v = nn.Linear(c, 16), nn.Linear(c, 16, bias=False), nn.Linear(c, 16)
        self.o = nn.Linear(16, c)

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("heads", "size", "both", "derived")), "how": r.choice(HOW)}

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.style == "heads":
            q, k, v = (y.view(b, n, 4, -1).transpose(1, 2) for y in (q, k, v))
        elif self.style == "size":
            q, k, v = (y.view(b, n, -1, 4).transpose(1, 2) for y in (q, k, v))
        elif self.style == "both":
            q, k, v = (y.view(b, n, 2, 8).transpose(1, 2) for y in (q, k, v))
        else:
            q, k, v = (y.view(b, n, 4, y.shape[-1] // 4).transpose(1, 2) for y in (q, k, v))
        return x + self.o(weigh(q, k, v, self.how).transpose(1, 2).reshape(b, n, -1))


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class GroupedQuery(Block):
    """Fewer keys and values than queries (Llama), with rotary positions and norms of queries and keys if asked."""

    def __init__(self, c: int, heads: int, kv: int, dim: int, repeat: str, how: str, rotary: bool, qk: bool) -> None:
        super().__init__()
        self.num_heads, self.num_kv, self.head_dim, self.out = heads, kv, dim, c
        self.repeat, self.how, self.rotary = repeat, how, rotary
        self.q_proj = nn.Linear(c, heads * dim, bias=False)
        self.k_proj, self.v_proj = nn.Linear(c, kv * dim, bias=False), nn.Linear(c, kv * dim, bias=False)
        self.o_proj, self.norm = nn.Linear(heads * dim, c, bias=False), norm1d("rms", c)
        self.q_norm = norm1d("rms", dim) if qk else nn.Identity()
        self.k_norm = norm1d("rms", dim) if qk else nn.Identity()
        angle = torch.arange(16)[:, None] * torch.cat(2 * [10.0 ** -torch.arange(dim // 2)])[None]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        heads, kv = r.choice(((4, 2), (4, 1), (4, 2), (2, 2), (6, 3)))
        return {
            "heads": heads, "kv": kv, "dim": r.choice((2, 4)),
            "repeat": r.choice(("expand", "interleave", "gqa", "view")), "how": r.choice(HOW),
            "rotary": r.random() < 0.5, "qk": r.random() < 0.25,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        h = self.norm(x)
        q = self.q_norm(self.q_proj(h).view(b, t, -1, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(h).view(b, t, -1, self.head_dim)).transpose(1, 2)
        v = self.v_proj(h).view(b, t, self.num_kv, self.head_dim).transpose(1, 2)
        if self.rotary:
            cos, sin = self.cos[:t], self.sin[:t]
            q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        times = self.num_heads // self.num_kv
        if self.repeat == "view":  # queries in groups, nothing is repeated
            q = q.reshape(b, self.num_kv, times, t, self.head_dim)
            scores = (q @ k.unsqueeze(2).transpose(-2, -1)) / self.head_dim**0.5
            z = (scores.softmax(-1) @ v.unsqueeze(2)).reshape(b, -1, t, self.head_dim)
        elif self.repeat == "gqa":
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            if self.repeat == "interleave":
                k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
            else:
                k = k[:, :, None].expand(b, self.num_kv, times, t, self.head_dim).reshape(b, -1, t, self.head_dim)
                v = v[:, :, None].expand(b, self.num_kv, times, t, self.head_dim).reshape(b, -1, t, self.head_dim)
            z = weigh(q, k, v, self.how, causal=True)
        return x + self.o_proj(z.transpose(1, 2).reshape(b, t, -1))


class Biased(Block):
    """Relative positions: a bias per head from a table; a temperature per head (Swin)."""

    def __init__(self, c: int, heads: int, style: str) -> None:
        super().__init__()
        self.num_heads, self.style, self.out = heads, style, c
        self.q, self.kv, self.o = nn.Linear(c, 4 * heads), nn.Linear(c, 8 * heads), nn.Linear(4 * heads, c)
        self.table = nn.Parameter(torch.randn(31, heads) * 0.1)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"heads": r.choice((2, 4)), "style": r.choice(("table", "scale", "cosine"))}

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).reshape(b, t, self.num_heads, -1).permute(0, 2, 1, 3)
        k, v = self.kv(x).reshape(b, t, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.style == "cosine":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        scores = q @ k.transpose(-2, -1)
        if self.style != "table":
            scores = scores * self.scale
        else:
            at = torch.arange(t, device=x.device)
            scores = scores + self.table[at[:, None] - at[None] + 15].permute(2, 0, 1).unsqueeze(0)
        return x + self.o((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, t, -1))


class KernelAttention(Block):
    """Attention without softmax over pairs: keys and values are multiplied first."""

    def __init__(self, c: int, heads: int, style: str) -> None:
        super().__init__()
        self.heads, self.style, self.out = heads, style, c
        self.q, self.k, self.v = (nn.Linear(c, 4 * heads) for _ in range(3))
        self.o = nn.Linear(4 * heads, c)

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"heads": r.choice((1, 2, 4)), "style": r.choice(("relu", "channels"))}

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.style == "relu":
            q, k = F.relu(q), F.relu(k)
            z = q @ (k.transpose(-2, -1) @ v)
            z = z / ((q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + 1.0)
        else:  # XCiT: channels attend to channels
            z = v @ (k.transpose(-2, -1) @ q).softmax(-1)
        return x + self.o(z.transpose(1, 2).flatten(2))


class Builtin(Block):
    """nn.MultiheadAttention, and the encoder layer around it."""

    def __init__(self, c: int, heads: int, style: str) -> None:
        super().__init__()
        self.style, self.out = style, c
        self.mha = nn.MultiheadAttention(c, heads, batch_first=True) if style != "layer" else None
        self.layer = (
            nn.TransformerEncoderLayer(c, heads, 2 * c, batch_first=True, norm_first=True) if style == "layer" else None
        )
        self.query = nn.Parameter(torch.randn(1, 3, c)) if style == "query" else None

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"heads": r.choice((1, 2)), "style": r.choice(("self", "layer", "query"))}

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is not None:
            return self.layer(x)
        assert self.mha is not None
        if self.query is None:
            return x + self.mha(x, x, x, need_weights=False)[0]
        pooled = self.mha(self.query.expand(x.shape[0], -1, -1), x, x)[0]
        return x + pooled.mean(1, keepdim=True)


ATTENTION: tuple[type[Block], ...] = (Packed, Literal, GroupedQuery, Biased, KernelAttention, Builtin)
