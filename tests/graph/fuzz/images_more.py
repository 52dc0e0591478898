"""More blocks of convolutional networks: the less usual ones."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.fuzz.images import conv
from tests.graph.fuzz.pieces import NORMS, Block, LayerScale, norm2d


class ConvNeXt(Block):
    def __init__(self, c: int, scale: bool) -> None:
        super().__init__()
        self.dw, self.n = conv(c, c, 5, groups=c), nn.LayerNorm(c)
        self.a, self.b = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.scale, self.out = LayerScale(c) if scale else nn.Identity(), c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"scale": r.random() < 0.6}

    def forward(self, x: Tensor) -> Tensor:
        y = self.n(self.dw(x).permute(0, 2, 3, 1))
        return x + self.scale(self.b(F.gelu(self.a(y)))).permute(0, 3, 1, 2)


class ShuffleUnit(Block):
    """ShuffleNet v2: one half is kept, the other transformed, then both are mixed."""

    def __init__(self, c: int) -> None:
        super().__init__()
        half = c // 2
        self.a, self.b, self.c = conv(half, half, 1), conv(half, half, groups=half), conv(half, half, 1)
        self.n, self.out = nn.BatchNorm2d(half), c

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = torch.cat((left, F.relu(self.c(self.n(self.b(F.relu(self.a(right))))))), dim=1)
        b, c, h, w = y.size()
        y = y.view(b, 2, c // 2, h, w)
        return torch.transpose(y, 1, 2).contiguous().view(b, -1, h, w)


class Scales(Block):
    """Res2Net: the channels in parts, each part sees the one before it."""

    def __init__(self, c: int, parts: int, style: str) -> None:
        super().__init__()
        self.width, self.parts, self.style = 4, parts, style
        self.a, self.b = conv(c, 4 * parts, 1), conv(4 * parts, c, 1)
        self.convs, self.out = nn.ModuleList(conv(4, 4) for _ in range(parts - 1)), c

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"parts": r.choice((2, 3, 4)), "style": r.choice(("split", "chunk"))}

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        parts = torch.split(y, self.width, 1) if self.style == "split" else y.chunk(self.parts, 1)
        done = [parts[0]]
        for part, layer in zip(parts[1:], self.convs, strict=True):
            done.append(F.relu(layer(part + done[-1] if len(done) > 1 else part)))
        return x + self.b(torch.cat(done, 1))


class Selective(Block):
    """SK / ResNeSt: branches weighted by a softmax over them."""

    def __init__(self, c: int, style: str) -> None:
        super().__init__()
        self.a, self.b, self.style = conv(c, 8), conv(c, 8, 5), style
        self.z, self.w, self.out = nn.Linear(8, 6), nn.Linear(6, 16), 8

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("view", "chunk"))}

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.a(x), self.b(x)
        logits = self.w(F.relu(self.z((u + v).mean((2, 3)))))
        if self.style == "view":
            weights = logits.view(x.shape[0], 2, -1).softmax(1)[:, :, :, None, None]
            return (torch.stack([u, v], 1) * weights).sum(1)
        p, q = logits.chunk(2, 1)
        p, q = torch.stack([p, q]).softmax(0)
        return u * p[..., None, None] + v * q[..., None, None]


class Ghost(Block):
    def __init__(self, c: int, out: int) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(c, 8, 1), conv(8, 8, groups=8), out

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"out": r.choice((16, 12))}

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return torch.cat([y, F.relu(self.b(y))], 1)[:, : self.out, :, :]


class Shared(Block):
    """The same modules called twice, or two modules with one weight."""

    def __init__(self, c: int, style: str, norm: str) -> None:
        super().__init__()
        self.style = style
        self.a, self.n, self.b = conv(c, c), norm2d(norm, c), conv(c, 8, 1)
        self.u, self.v = conv(c, 12), conv(c, 12)
        self.v.weight = self.u.weight
        self.w, self.out = conv(12, c), 8

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("chain", "branches", "tied")), "norm": r.choice(NORMS)}

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "chain":
            y = self.n(self.a(F.relu(self.n(self.a(x)))))
        elif self.style == "branches":
            y = self.w(F.relu(self.u(x))) - self.w(F.relu(self.u(x.flip(3))))
        else:
            y = self.w(F.relu(self.u(x)) + F.relu(self.v(F.avg_pool2d(x, 3, 1, 1))))
        return self.b(y)


class SpatialGate(Block):
    """CBAM's second half, and efficient channel attention."""

    def __init__(self, c: int, channel: bool) -> None:
        super().__init__()
        self.a, self.gate, self.out = conv(c, 12, 1), conv(2, 1, 5), 12
        self.line, self.channel = nn.Conv1d(1, 1, 3, padding=1, bias=False), channel

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"channel": r.random() < 0.4}

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        if self.channel:
            w = self.line(F.adaptive_avg_pool2d(y, 1).squeeze(-1).transpose(-1, -2))
            return y * w.transpose(-1, -2).unsqueeze(-1).sigmoid()
        stats = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return y * self.gate(stats).sigmoid()


class Standardized(Block):
    """Weight-standardized convolution (NFNet), or one with a raw kernel."""

    def __init__(self, c: int, standard: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(12, c, 3, 3) * 0.2), nn.Parameter(torch.zeros(12))
        self.gain, self.standard = nn.Parameter(torch.ones(12, 1, 1, 1)), standard
        self.b, self.out = conv(12, 8, 1), 8

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"standard": r.random() < 0.6}

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        if self.standard:
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5) * self.gain
        return self.b(F.relu(F.conv2d(x, w, self.bias, padding=1)))


class RepVGG(Block):
    def __init__(self, c: int, out: int, identity: bool) -> None:
        super().__init__()
        self.a, self.b = conv(c, out, bias=False), conv(c, out, 1, bias=False)
        self.n, self.m = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.i, self.out = nn.BatchNorm2d(c) if identity else None, out

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        identity = r.random() < 0.5
        return {"out": c if identity else 12, "identity": identity}

    def forward(self, x: Tensor) -> Tensor:
        y = self.n(self.a(x)) + self.m(self.b(x))
        return F.relu(y if self.i is None else y + self.i(x))


class Pyramid(Block):
    """PSPNet / ASPP: pooled at several sizes, brought back, joined."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b, self.d = conv(c, 4, 1), conv(c, 4, 1), nn.Conv2d(c, 6, 3, padding=2, dilation=2)
        self.c, self.out = conv(c + 14, 8), 8

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        a = F.interpolate(self.a(F.adaptive_avg_pool2d(x, 2)), size=size, mode="bilinear", align_corners=False)
        b = self.b(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *size)
        return self.c(torch.cat([x, a, b, self.d(x)], dim=1))


class FiLM(Block):
    """Scale and shift per channel, computed from a pooled summary by linear layers."""

    def __init__(self, c: int, style: str) -> None:
        super().__init__()
        self.a, self.n, self.out = conv(c, 8), nn.GroupNorm(2, 8), 8
        self.f, self.style = nn.Linear(c, 16), style

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("chunk", "slice", "unflatten"))}

    def forward(self, x: Tensor) -> Tensor:
        f, y = self.f(x.mean((-1, -2))), self.n(self.a(x))
        if self.style == "chunk":
            scale, shift = f[..., None, None].chunk(2, dim=1)
        elif self.style == "slice":
            scale, shift = f[:, : self.out, None, None], f[:, self.out :, None, None]
        else:
            scale, shift = f.unflatten(1, (2, -1))[..., None, None].unbind(1)
        return F.relu(y * (scale + 1) + shift)


class Projected(Block):
    """A raw parameter instead of a layer: einsum, matmul or tensordot over the channels."""

    def __init__(self, c: int, style: str) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(c, 12) * 0.3), nn.Parameter(torch.randn(1, 12, 1, 1))
        self.style, self.c, self.out = style, conv(12, 8, 1), 8

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        return {"style": r.choice(("einsum", "matmul", "last"))}

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "einsum":
            y = torch.einsum("bchw,cd->bdhw", x, self.w)
        elif self.style == "matmul":
            y = (self.w.t() @ x.flatten(2)).reshape(x.shape[0], -1, *x.shape[2:])
        else:
            y = (x.movedim(1, -1) @ self.w).movedim(-1, 1)
        return self.c(F.relu(y + self.b))


class Moved(Block):
    """Data movement along the channels."""

    def __init__(self, c: int, move: str) -> None:
        super().__init__()
        self.move, self.half = move, c // 2
        size = {"pad": c + 4, "half": c // 2, "odd": c // 2, "repeat": 2 * c, "coordinates": c + 2}.get(move, c)
        self.c, self.out = conv(size, 8, 1), 8

    @classmethod
    def draw(cls, r: random.Random, c: int) -> dict[str, Any]:
        kinds = ("flip", "roll", "pad", "half", "odd", "even, odd", "repeat", "softmax", "deviation", "coordinates",
                 "sort", "cumsum", "swap", "norm")  # fmt: skip
        return {"move": r.choice(kinds)}

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self._moved(x))

    def _moved(self, x: Tensor) -> Tensor:
        match self.move:
            case "flip":
                return x.flip(1)
            case "roll":
                return x.roll(2, 1)
            case "pad":
                return F.pad(x, (0, 0, 0, 0, 2, 2))
            case "half":
                return x[:, : self.half]
            case "odd":
                return x[:, 1::2]
            case "even, odd":
                return torch.cat([x[:, ::2], x[:, 1::2]], 1)
            case "repeat":
                return x.repeat(1, 2, 1, 1)
            case "softmax":
                return x.softmax(1)
            case "deviation":
                return x - x.mean(1, keepdim=True)
            case "coordinates":
                b, _, h, w = x.shape
                ys = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype).view(1, 1, h, 1).expand(b, 1, h, w)
                return torch.cat([x, ys, ys.transpose(2, 3)], 1)
            case "sort":
                return x.sort(1).values
            case "cumsum":
                return x.cumsum(1)
            case "swap":
                return torch.cat([x[:, self.half :], x[:, : self.half]], 1)
            case _:
                return F.normalize(x, dim=1)


MORE_IMAGE_BLOCKS: tuple[type[Block], ...] = (
    ConvNeXt, ShuffleUnit, Scales, Selective, Ghost, Shared, SpatialGate, Standardized, RepVGG, Pyramid, FiLM,
    Projected, Moved,
)  # fmt: skip
