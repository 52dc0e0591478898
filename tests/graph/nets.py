"""Small networks to put constructs into, and what a test of one construct says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Layers by name and a forward given as a function of the module and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@dataclass(frozen=True)
class Case:
    """A network with what must be prunable (weight names of producers) and what must be frozen."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    prunable: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()


def conv(a: int, b: int, k: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **kwargs)


def image(channels: int = 3, size: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, size, size)


def tokens(width: int = 8, length: int = 5) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, length, width)


def head(s: Any, y: Tensor) -> Tensor:
    return s.fc(y.mean((2, 3)))


class Gate(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c // 2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.b(F.relu(self.a(F.adaptive_avg_pool2d(x, 1)))))


def shuffle(x: Tensor, g: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, g, c // g, h, w).transpose(1, 2).reshape(b, c, h, w)


def c2f(s: Any, x: Tensor) -> Tensor:
    parts = list(s.a(x).chunk(2, 1))
    parts.append(parts[-1] + s.b(parts[-1]))
    return head(s, s.c(torch.cat(parts, 1)))


def option_a(s: Any, x: Tensor) -> Tensor:
    y = F.relu(s.a(x))
    return head(s, s.d(F.relu(F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + s.c(F.relu(s.b(y))))))


def slice_write(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    z = torch.zeros_like(y)
    z[:, :, 1:] = y[:, :, 1:] * 2
    return head(s, z)


def parametrized(kind: str) -> nn.Module:
    wrap = getattr(nn.utils.parametrizations, kind)
    return Net(lambda s, x: head(s, s.b(F.relu(s.a(x)))), a=wrap(conv(3, 8)), b=wrap(conv(8, 8)), fc=nn.Linear(8, 4))


def tied() -> nn.Module:
    net = Net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 4))
    net.b.weight = net.a.weight  # type: ignore[union-attr,assignment]
    return net


def tied_hidden() -> nn.Module:
    net = Net(
        lambda s, x: s.c(F.relu(s.h1(F.relu(s.a(x)))) + F.relu(s.h2(F.relu(s.a(x))))),
        a=nn.Linear(8, 6), h1=nn.Linear(6, 10), h2=nn.Linear(6, 10), c=nn.Linear(10, 4),
    )  # fmt: skip
    net.h2.weight = net.h1.weight  # type: ignore[union-attr,assignment]
    return net


class Scaled(nn.Module):
    """Per-channel parameter, per-channel buffer, and a plain tensor attribute where asked."""

    def __init__(self, c: int, attribute: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(c, 1, 1))
        self.register_buffer("mean", torch.randn(1, c, 1, 1))
        self.shift = torch.randn(c, 1, 1) if attribute else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.gamma + self.shift


class Attention(nn.Module):
    """Multi-head attention written by hand, with a packed projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, c))
