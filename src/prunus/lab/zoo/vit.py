"""A small vision transformer for small images.

Source: Dosovitskiy et al. 2021, ICLR, arXiv:2010.11929, section 3.1 (patch embedding, class token, learned positions).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.lab.zoo.attention import Block, FeedForward


class VisionTransformer(nn.Module):
    """Strided convolution to patches, a class token, learned positions, pre-norm blocks, a linear head on the token."""

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        size: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        fused: bool,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, (size // patch) ** 2 + 1, dim))
        nn.init.normal_(self.positions, std=0.02)
        blocks = (Block(dim, heads, FeedForward(dim, hidden), causal=False, fused=fused) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


def vit_tiny_cifar(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    patch: int = 4,
    dim: int = 128,
    depth: int = 6,
    heads: int = 4,
    hidden: int | None = None,
    fused: bool = True,
) -> VisionTransformer:
    """Six blocks of width 128 on 4x4 patches (2x2 or 7x7 for images of another size, through `patch`).

    Raises:
        SpecError: `patch` does not divide `size`, `heads` does not divide `dim`, or fewer than one block.
    """
    if depth < 1:
        raise SpecError(f"depth must be at least 1, not {depth}")
    if patch < 1 or size % patch:
        raise SpecError(f"images of {size} pixels cannot be cut into patches of {patch}: choose a divisor of {size}")
    inner = 4 * dim if hidden is None else hidden
    return VisionTransformer(
        num_classes=num_classes,
        in_channels=in_channels,
        size=size,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        hidden=inner,
        fused=fused,
    )
