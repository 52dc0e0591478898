"""What the blocks of random networks are made of: normalizations, activations, gates, and the form of a block."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("batch", "batch", "group", "layer", "instance", "none")
ACTS = ("relu", "silu", "gelu", "hardswish", "elu", "leaky", "prelu", "tanh")


class Block(nn.Module):
    """A block of a network. `draw` chooses its arguments, of which the printed source of the network consists."""

    out: int
    """The channels (image blocks) or the width (token blocks) of what it returns."""

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        """Arguments beside the incoming channels."""
        return {}


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of an image."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RMSNorm(nn.Module):
    """As decoder models write it by hand."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class LayerScale(nn.Module):
    """One factor per channel (images) or feature (tokens)."""

    def __init__(self, width: int, image: bool = False) -> None:
        super().__init__()
        self.gamma, self.image = nn.Parameter(torch.full((width,), 0.1)), image

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma.view(1, -1, 1, 1) if self.image else self.gamma)


def norm2d(kind: str, c: int) -> nn.Module:
    """A normalization of images."""
    if kind == "batch":
        return nn.BatchNorm2d(c)
    if kind == "group":
        return nn.GroupNorm(2, c)
    if kind == "instance":
        return nn.InstanceNorm2d(c, affine=True)
    return ChannelNorm(c) if kind == "layer" else nn.Identity()


def norm1d(kind: str, width: int) -> nn.Module:
    """A normalization of tokens."""
    if kind == "layer":
        return nn.LayerNorm(width)
    if kind == "rms":
        return RMSNorm(width)
    return nn.RMSNorm(width) if kind == "torch rms" else nn.Identity()


TOKEN_NORMS = ("layer", "layer", "rms", "torch rms", "none")


def act(kind: str, c: int = 1) -> nn.Module:
    """An activation by name."""
    kinds: dict[str, Any] = {
        "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish, "elu": nn.ELU,
        "leaky": nn.LeakyReLU, "tanh": nn.Tanh,
    }  # fmt: skip
    return nn.PReLU(c) if kind == "prelu" else kinds[kind]()  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """The gate of SENet: with 1x1 convolutions or with linear layers and one of the usual ways back to an image."""

    def __init__(self, c: int, style: str) -> None:
        super().__init__()
        self.style, self.c = style, c
        kernel = style == "conv"
        self.a = nn.Conv2d(c, max(c // 2, 2), 1) if kernel else nn.Linear(c, max(c // 2, 2))
        self.b = nn.Conv2d(max(c // 2, 2), c, 1) if kernel else nn.Linear(max(c // 2, 2), c)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "conv":
            return x * self.b(F.relu(self.a(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        b, c = x.shape[:2]
        y = F.hardsigmoid(self.b(F.relu(self.a(x.mean((2, 3))))))
        if self.style == "view":
            return x * y.view(b, c, 1, 1)
        if self.style == "attribute":
            return x * y.view(-1, self.c, 1, 1)
        return x * y[:, :, None, None]


GATES = ("conv", "view", "attribute", "index")
