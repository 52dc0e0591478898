"""Blocks of convolutional networks, `[b, c, h, w]` to `[b, out, h, w]`, with forwards as people write them."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.fuzz.pieces import ACTS, GATES, NORMS, Block, LayerScale, SqueezeExcite, act, norm2d


def conv(a: int, b: int, k: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **more)


class Residual(Block):
    def __init__(self, c: int, inner: int, norm: str, kind: str, scale: bool) -> None:
        super().__init__()
        self.a, self.n, self.act, self.b = conv(c, inner), norm2d(norm, inner), act(kind, inner), conv(inner, c)
        self.scale, self.out = LayerScale(c, image=True) if scale else nn.Identity(), c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"inner": r.choice((8, 12)), "norm": r.choice(NORMS), "kind": r.choice(ACTS), "scale": r.random() < 0.3}

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.scale(self.b(self.act(self.n(self.a(x))))))


class Bottleneck(Block):
    def __init__(self, c: int, out: int, norm: str, groups: int, gate: str) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(c, 8, 1, bias=False), conv(8, 8, groups=groups), conv(8, out, 1, bias=False)
        self.n, self.m, self.o = norm2d(norm, 8), norm2d(norm, 8), norm2d(norm, out)
        self.gate = SqueezeExcite(out, gate) if gate else nn.Identity()
        self.down = nn.Sequential(conv(c, out, 1), nn.BatchNorm2d(out)) if c != out else None
        self.out = out

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {
            "out": r.choice((c, 12, 16)), "norm": r.choice(NORMS), "groups": r.choice((1, 1, 2, 4)),
            "gate": r.choice((*GATES, "", "")),
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.down is None else self.down(x)
        y = F.relu(self.n(self.a(x)), inplace=True)
        y = F.relu(self.m(self.b(y)), inplace=True)
        y = self.gate(self.o(self.c(y)))
        y += identity
        return F.relu(y)


class Inverted(Block):
    def __init__(self, c: int, out: int, multiplier: int, norm: str, gate: str) -> None:
        super().__init__()
        wide = 2 * c
        self.a, self.b = conv(c, wide, 1, bias=False), conv(wide, wide * multiplier, groups=wide)
        wide *= multiplier
        self.n, self.c, self.gate = norm2d(norm, wide), conv(wide, out, 1), SqueezeExcite(wide, gate)
        self.skip, self.out = out == c, out

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {
            "out": r.choice((c, c, 8)), "multiplier": r.choice((1, 1, 2)), "norm": r.choice(NORMS),
            "gate": r.choice(GATES),
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.gate(F.hardswish(self.n(self.b(F.relu6(self.a(x)))))))
        return x + y if self.skip else y


class Dense(Block):
    """DenseNet: every layer sees all before it; then a transition."""

    def __init__(self, c: int, growth: int, layers: int, norm: str, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(norm2d(norm, c + i * growth), nn.ReLU(), conv(c + i * growth, growth)) for i in range(layers)
        )
        total = c + layers * growth
        self.transition = conv(total, out, 1) if out else nn.Identity()
        self.out = out or total

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {
            "growth": r.choice((2, 4)), "layers": r.randint(1, 3), "norm": r.choice(("batch", "none", "instance")),
            "out": r.choice((8, 12, 16, 0 if c <= 16 else 8)),
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.transition(torch.cat(features, 1))


class Shuffled(Block):
    """Grouped convolutions with a channel shuffle written in one of the usual ways."""

    def __init__(self, c: int, groups: int, style: str) -> None:
        super().__init__()
        self.groups, self.style = groups, style
        self.a, self.b = conv(c, 16, 1, groups=groups), conv(16, 12, groups=groups)
        self.mix, self.out = nn.ChannelShuffle(groups), 12

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        styles = ("view", "attribute", "minus one", "module", "none")
        return {"groups": r.choice((2, 4) if c % 4 == 0 else (2,)), "style": r.choice(styles)}

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.a(x))
        b, c, h, w = y.shape
        if self.style == "view":
            y = y.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        elif self.style == "attribute":
            y = y.reshape(b, c // self.groups, self.groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        elif self.style == "minus one":
            y = y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        elif self.style == "module":
            y = self.mix(y)
        return self.b(y)


class CrossStage(Block):
    """CSP / C2f: even or uneven parts, of which one goes on; everything is joined."""

    def __init__(self, c: int, left: int, right: int, style: str, add: bool) -> None:
        super().__init__()
        self.left, self.right, self.style, self.add = left, right, style, add
        self.a, self.b = conv(c, left + right, 1), conv(right, right)
        self.c, self.out = conv(left + 2 * right, 8, 1), 8

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        style = r.choice(("chunk", "split", "slice", "literal"))
        left, right = (4, 4) if style in ("chunk", "literal") else r.choice(((4, 4), (4, 8), (6, 3)))
        return {"left": left, "right": right, "style": style, "add": r.random() < 0.5}

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.a(x))
        if self.style == "chunk":
            left, right = y.chunk(2, 1)
        elif self.style == "split":
            left, right = torch.split(y, [self.left, self.right], dim=1)
        elif self.style == "slice":
            left, right = y[:, : self.left], y[:, self.left :]
        else:
            left, right = y.split(4, 1)
        z = self.b(right)
        return self.c(torch.cat([left, right, z + right if self.add else z], 1))


class Gated(Block):
    def __init__(self, c: int, style: str, norm: str) -> None:
        super().__init__()
        self.style = style
        self.a, self.n, self.out = conv(c, 16), norm2d(norm, 8), 8
        self.u, self.v = conv(c, 8, 1), conv(c, 8)

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("glu", "chunk", "two", "max")), "norm": r.choice(NORMS)}

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "glu":
            y = F.glu(self.a(x), 1)
        elif self.style == "chunk":
            u, v = self.a(x).chunk(2, dim=1)
            y = u * torch.sigmoid(v)
        elif self.style == "two":
            y = torch.tanh(self.u(x)) * torch.sigmoid(self.v(x))
        else:
            b, c, h, w = (z := self.a(x)).shape
            y = z.view(b, c // 2, 2, h, w).amax(2)
        return self.n(y)


class UpDown(Block):
    """Resolution up and down again, with a skip that is joined or added (U-Net)."""

    def __init__(self, c: int, style: str, join: str) -> None:
        super().__init__()
        self.style, self.join = style, join
        self.down, self.up = conv(c, 12, stride=2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.pixels, self.plain = conv(12, 32, 1), conv(12, 8)
        self.skip, self.c, self.out = conv(c, 8, 1), conv(16 if join == "cat" else 8, 8), 8

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {
            "style": r.choice(("transposed", "pixels", "nearest", "bilinear")), "join": r.choice(("cat", "add")),
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.down(x))
        if self.style == "transposed":
            y = self.up(y)
        elif self.style == "pixels":
            y = F.pixel_shuffle(self.pixels(y), 2)
        else:
            y = F.interpolate(self.plain(y), scale_factor=2, mode=self.style)
        skip = self.skip(x)
        return self.c(torch.cat([y, skip], 1) if self.join == "cat" else y + skip)


class Inception(Block):
    def __init__(self, c: int, widths: tuple[int, int, int], pool: bool) -> None:
        super().__init__()
        a, b, d = widths
        self.a, self.b, self.d = conv(c, a, 1), nn.Sequential(conv(c, 6, 1), nn.ReLU(), conv(6, b)), conv(c, d, 1)
        self.pool, self.out = pool, a + b + d + (c if pool else 0)

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"widths": r.choice(((4, 4, 4), (2, 6, 4), (8, 2, 2))), "pool": c <= 12 and r.random() < 0.4}

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.a(x), self.b(x), self.d(F.avg_pool2d(x, 3, 1, 1))]
        if self.pool:
            outputs.append(F.max_pool2d(x, 3, 1, 1))
        return torch.cat(outputs, 1)


class Upscale(Block):
    """Image restoration: a wide convolution, its channels become pixels; or the reverse."""

    def __init__(self, c: int, style: str) -> None:
        super().__init__()
        self.style = style
        self.a, self.b = conv(c, 16), conv(4, 8, stride=2)
        self.d, self.e = conv(c, 6), conv(24, 8, 1)
        self.shuffle, self.unshuffle, self.out = nn.PixelShuffle(2), nn.PixelUnshuffle(2), 8

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("up", "down"))}

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "up":
            return self.b(self.shuffle(self.a(x)))
        return F.interpolate(self.e(self.unshuffle(self.d(x))), scale_factor=2)


IMAGE_BLOCKS: tuple[type[Block], ...] = (
    Residual, Bottleneck, Inverted, Dense, Shuffled, CrossStage, Gated, UpDown, Inception, Upscale,
)  # fmt: skip
