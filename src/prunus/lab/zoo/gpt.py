"""A small decoder language model.

Source of the form: Radford et al. 2019 (GPT-2): learned positions, normalization before each branch, GELU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.lab.zoo.attention import Block, FeedForward


class Decoder(nn.Module):
    """Embeddings, pre-norm blocks, a last normalization, and a head that shares the embedding's weight when `tied`."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        dim: int,
        depth: int,
        heads: int,
        make_mlp: Callable[[], nn.Module],
        fused: bool,
        tied: bool,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(length, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, make_mlp(), causal=True, fused=fused) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def gpt_tiny(
    *,
    vocabulary: int = 256,
    size: int = 64,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    hidden: int | None = None,
    fused: bool = True,
    tied: bool = True,
) -> Decoder:
    """A decoder on byte tokens that trains in seconds.

    Args:
        vocabulary: Number of tokens.
        size: Longest sequence.
        dim: Width of the residual stream.
        depth: Number of blocks.
        heads: Attention heads; must divide `dim`.
        hidden: Width of the MLP, `4 * dim` when left out.
        fused: One projection for q, k and v, or three.
        tied: The head shares the weight of the embedding.

    Raises:
        SpecError: `heads` does not divide `dim`, or fewer than one block.
    """
    if depth < 1:
        raise SpecError(f"depth must be at least 1, not {depth}")
    inner = 4 * dim if hidden is None else hidden
    return Decoder(
        vocabulary=vocabulary,
        length=size,
        dim=dim,
        depth=depth,
        heads=heads,
        make_mlp=lambda: FeedForward(dim, inner),
        fused=fused,
        tied=tied,
    )
