"""Self-attention and the pre-norm block that the small transformers of the zoo are made of.

Source: Vaswani et al. 2017, NeurIPS, arXiv:1706.03762, equation 1 and section 3.2.2; normalization before each branch
as in Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import SpecError


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for q, k and v, or three separate ones.

    The width of a head (`head_dim`) is kept, and the number of heads follows from the projection's width, so a network
    from which whole heads were removed runs as it is.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool, fused: bool) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise SpecError(f"the model width {dim} cannot be divided among {heads} heads: choose a divisor of {dim}")
        self.head_dim = dim // heads
        self.causal, self.fused = causal, fused
        if fused:
            self.qkv = nn.Linear(dim, 3 * dim)
        else:
            self.q = nn.Linear(dim, dim)
            self.k = nn.Linear(dim, dim)
            self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        if self.fused:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        batch, length = x.shape[0], x.shape[1]
        q, k, v = (t.reshape(batch, length, -1, self.head_dim).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Linear, GELU, linear: the MLP of a transformer block."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, where `mlp` is any module from width to width."""

    def __init__(self, dim: int, heads: int, mlp: nn.Module, *, causal: bool, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, causal=causal, fused=fused)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y
