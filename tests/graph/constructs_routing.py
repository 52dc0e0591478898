"""Moving, picking, writing and routing, one construct each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs_maths import A, B, slot, text, vision
from tests.graph.nets import Gate, conv


def patches(s: Any, y: Tensor) -> Tensor:
    """Non-overlapping 4 x 4 patches as tokens."""
    b, c, h, w = y.shape
    z = y.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 4) * (w // 4), c * 16)
    return s.b(z).transpose(1, 2).unsqueeze(-1)


def focus(y: Tensor) -> Tensor:
    """Space to depth by slices (YOLOv5)."""
    return torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1)


def coordinates(y: Tensor) -> Tensor:
    """Channels that say where a pixel is (CoordConv)."""
    rows = torch.linspace(-1, 1, y.shape[2]).view(1, 1, -1, 1).expand(y.shape[0], 1, y.shape[2], y.shape[3])
    return torch.cat([y, rows, rows.transpose(2, 3)], 1)


def windows(s: Any, y: Tensor) -> Tensor:
    """Partition into windows, mix inside of them, and put them together again."""
    b, c, h, w = y.shape
    z = y.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    z = s.b(z)
    return z.view(b, h // 4, w // 4, 4, 4, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h, w)


def res2(s: Any, y: Tensor) -> Tensor:
    """Quarters of the channels, each convolved together with the one before (Res2Net)."""
    one, two, three, four = y.chunk(4, 1)
    two = s.b(two)
    three = s.c(three + two)
    return torch.cat([one, two, three, four], 1)


def ghost(s: Any, y: Tensor) -> Tensor:
    """Half of the channels are cheap copies of the other half (GhostNet)."""
    return torch.cat([y, s.b(y)], 1)


def pyramid(s: Any, y: Tensor) -> Tensor:
    z = s.b(F.relu(y))
    return s.c(y) + F.interpolate(s.d(z), size=y.shape[-2:], mode="nearest")


def pooled(s: Any, y: Tensor) -> Tensor:
    """A global branch beside a local one (ASPP)."""
    z = F.interpolate(s.b(F.adaptive_avg_pool2d(y, 1)), size=y.shape[2:], mode="bilinear", align_corners=False)
    return s.d(torch.cat([s.c(y), z], 1))


def top_tokens(s: Any, y: Tensor) -> Tensor:
    """The two tokens with the largest scores."""
    index = s.b(y).squeeze(-1).topk(2, 1).indices
    return torch.gather(y, 1, index.unsqueeze(-1).expand(-1, -1, y.shape[-1]))


def hard_route(s: Any, y: Tensor) -> Tensor:
    """Each token goes to the expert with the largest score."""
    flat = y.reshape(-1, y.shape[-1])
    best = s.r(flat).argmax(-1)
    out = torch.zeros_like(flat)
    for i, expert in enumerate((s.b, s.c)):
        rows = (best == i).nonzero().squeeze(-1)
        out.index_add_(0, rows, expert(flat[rows]))
    return out.view_as(y)


def written_route(s: Any, y: Tensor) -> Tensor:
    """The same, written with masks."""
    flat = y.reshape(-1, y.shape[-1])
    mask = s.r(flat).argmax(-1) == 0
    out = flat.clone()
    out[mask] = s.b(flat[mask])
    return out.view_as(y)


def messages(s: Any, y: Tensor) -> Tensor:
    """One step of message passing over edges."""
    source, target = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 2, 3, 4, 0, 2])
    nodes = y.transpose(0, 1)
    sent = F.relu(s.b(torch.cat([nodes[source], nodes[target]], -1)))
    gathered = torch.zeros_like(nodes)[..., :1].expand(-1, -1, sent.shape[-1]).clone()
    return s.c(gathered.index_add(0, target, sent)).transpose(0, 1)


def scattered(s: Any, y: Tensor) -> Tensor:
    index = torch.tensor([0, 1, 1, 0, 2]).view(1, -1, 1).expand(y.shape)
    return y + torch.zeros_like(y).scatter_add(1, index, y)


def fourier(s: Any, y: Tensor) -> Tensor:
    """A convolution in frequency space (FNO)."""
    z = torch.fft.rfft2(y)
    weight = torch.view_as_complex(s.w[0])
    return torch.fft.irfft2(torch.einsum("bihw,io->bohw", z, weight), s=y.shape[-2:])


def rotary(y: Tensor) -> Tensor:
    """Turn pairs of neighbours by an angle that depends on the position."""
    pairs = torch.view_as_complex(y.reshape(*y.shape[:-1], -1, 2))
    angle = torch.arange(y.shape[1], dtype=y.dtype)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(2)


def halves(s: Any, y: Tensor) -> Tensor:
    """Rotary embedding by halves, as most language models do it."""
    one, two = y.chunk(2, -1)
    angle = torch.arange(y.shape[1], dtype=y.dtype)[:, None]
    return y * angle.cos() + torch.cat([-two, one], -1) * angle.sin()


class MaskedConv(nn.Conv2d):
    """A convolution that sees only what lies before it; the mask is written into the weight."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 3, padding=1)
        mask = torch.ones_like(self.weight)
        mask[:, :, 1, 1:], mask[:, :, 2] = 0, 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class SpatialGate(nn.Module):
    """One half of the features gates the other, over tokens (gMLP)."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.mix = nn.Linear(length, length)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        return one * self.mix(two.transpose(1, 2)).transpose(1, 2)


class Latents(nn.Module):
    """Learned queries, one head, written by hand (Perceiver)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.latents, self.k = nn.Parameter(torch.randn(3, 6)), nn.Linear(width, 6)
        self.v = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return (self.latents @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)


def convs(*widths: int) -> Any:
    return lambda: nn.Sequential(*(conv(a, b) for a, b in pairwise(widths)))


ROUTING = [
    vision("patches", patches, (*A, "b.weight"), width=6, b=lambda: nn.Linear(128, 6)),
    vision("focus", lambda s, y: s.b(focus(y)), B, width=6, b=lambda: conv(32, 6)),
    vision("coordinates", lambda s, y: s.b(coordinates(y)), B, width=6, b=lambda: conv(10, 6)),
    vision("windows", windows, B, width=6, b=lambda: nn.Linear(8, 6)),
    vision("Res2Net", res2, (*B, "c.weight"), b=lambda: conv(2, 2), c=lambda: conv(2, 2)),
    vision("GhostNet", ghost, B, width=16, b=lambda: conv(8, 8, groups=8)),
    vision(
        "pyramid",
        pyramid,
        (*B, "c.weight", "d.weight"),
        width=6,
        b=lambda: conv(8, 10, stride=2),
        c=lambda: conv(8, 6),
        d=lambda: conv(10, 6),
    ),
    vision(
        "global branch",
        pooled,
        (*B, "c.weight", "d.weight"),
        width=5,
        b=lambda: conv(8, 6, 1),
        c=lambda: conv(8, 6),
        d=lambda: conv(12, 5),
    ),
    vision("squeeze-excite twice", lambda s, y: s.g(s.g(y)), (*A, "g.a.weight"), g=lambda: Gate(8)),
    vision(
        "stack of layers", lambda s, y: s.b(y), ("a.weight", "b.0.weight", "b.1.weight"), width=6, b=convs(8, 10, 6)
    ),
    vision("masked convolution", lambda s, y: s.b(F.relu(y)), B, width=6, b=lambda: MaskedConv(8, 6)),
    vision("pad by copies", lambda s, y: F.pad(F.pad(y, (1, 1, 1, 1), mode="reflect"), (1, 0, 1, 0), mode="replicate")),
    vision("pad around", lambda s, y: F.pad(y, (1, 1, 1, 1), mode="circular")),
    vision("crop", lambda s, y: y[:, :, 1:-1, 2:] + s.b(y)[:, :, 1:-1, 2:], B, b=lambda: conv(8, 8)),
    vision("transposed space", lambda s, y: y.transpose(2, 3).flip(2).rot90(1, (2, 3))),
    vision("unfold and fold", lambda s, y: F.fold(F.unfold(y, 2, stride=2), 8, 2, stride=2)),
    vision("windows by unfold", lambda s, y: y.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))),
    vision(
        "resize",
        lambda s, y: F.interpolate(y, size=(5, 5), mode="bicubic") + F.interpolate(y, size=(5, 5), mode="area"),
    ),
    vision(
        "sampling grid",
        lambda s, y: F.grid_sample(
            y,
            F.affine_grid(torch.eye(2, 3).expand(y.shape[0], 2, 3), (y.shape[0], 1, 8, 8), align_corners=False),
            align_corners=False,
        ),
    ),
    vision(
        "pooling",
        lambda s, y: F.max_pool2d(y, 2) + F.avg_pool2d(y, 2) + F.lp_pool2d(y, 2.0, 2) + F.adaptive_max_pool2d(y, 4),
    ),
    vision("unpool", lambda s, y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2)),
    vision(
        "pool over channels",
        lambda s, y: F.avg_pool1d(y.flatten(2).transpose(1, 2), 2).transpose(1, 2).unsqueeze(-1),
        (),
        A,
        "slides",
        width=4,
    ),
    vision("expand one channel", lambda s, y: s.b(y).expand(-1, 8, -1, -1) * y, (), A, b=lambda: conv(8, 1)),
    vision("tile channels", lambda s, y: s.b(y.tile(1, 2, 1, 1)), B, width=6, b=lambda: conv(16, 6)),
    vision(
        "repeat interleave of groups",
        lambda s, y: s.b(y.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2)),
        B,
        width=6,
        b=lambda: conv(16, 6),
    ),
    vision("groups of two", lambda s, y: s.b(y), B, width=8, b=lambda: conv(8, 8, groups=4)),
    vision(
        "dilated depthwise of two",
        lambda s, y: s.b(y),
        B,
        width=16,
        b=lambda: nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=8),
    ),
    text(
        "causal convolution",
        lambda s, y: s.b(F.pad(y.transpose(1, 2), (2, 0)))[..., : y.shape[1]].transpose(1, 2),
        B,
        width=6,
        b=lambda: nn.Conv1d(12, 6, 3),
    ),
    text(
        "cut after padding",
        lambda s, y: s.b(y.transpose(1, 2))[..., :-2].transpose(1, 2),
        B,
        width=6,
        b=lambda: nn.Conv1d(12, 6, 3, padding=2),
    ),
    text(
        "shift in time",
        lambda s, y: s.b(torch.cat([y, F.pad(y, (0, 0, 1, 0))[:, :-1]], -1)),
        B,
        width=6,
        b=lambda: nn.Linear(24, 6),
    ),
    text("spatial gate", lambda s, y: s.g(y), width=6, g=lambda: SpatialGate(5)),
    text("latents", lambda s, y: s.g(y), ("a.weight", "g.v.weight"), width=10, g=lambda: Latents(12)),
    text("best tokens", top_tokens, A, b=lambda: nn.Linear(12, 1)),
    text(
        "experts by index",
        hard_route,
        (*B, "c.weight"),
        r=lambda: nn.Linear(12, 2),
        b=lambda: nn.Linear(12, 12),
        c=lambda: nn.Linear(12, 12),
    ),
    text("experts by mask", written_route, B, r=lambda: nn.Linear(12, 2), b=lambda: nn.Linear(12, 12)),
    text(
        "message passing", messages, (*A, "c.weight"), width=6, b=lambda: nn.Linear(24, 10), c=lambda: nn.Linear(10, 6)
    ),
    text("scatter over tokens", scattered),
    text(
        "gather over features",
        lambda s, y: y.gather(-1, torch.zeros(y.shape[0], y.shape[1], 3, dtype=torch.long)),
        (),
        A,
        "picks",
        width=3,
    ),
    text("take along time", lambda s, y: torch.take_along_dim(y, y.argsort(1), 1)),
    text("index select of tokens", lambda s, y: y.index_select(1, torch.tensor([3, 0, 0])) + y[:, [1, 2, 4]]),
    text(
        "reorder of features", lambda s, y: y[..., torch.randperm(12, generator=torch.Generator().manual_seed(0))], ()
    ),
    text("unbind of tokens", lambda s, y: torch.stack([t * (i + 1) for i, t in enumerate(y.unbind(1))], 1)),
    text("tokens of a mask", lambda s, y: y[:, torch.tensor([True, False, True, True, False])]),
    text("one position of all", lambda s, y: y[:, 0] + y[:, -1]),
    text("one feature of all", lambda s, y: y[..., 0:1] * y),
    text("rotary pairs", lambda s, y: rotary(y)),
    text("rotary halves", halves),
    vision("Fourier convolution", fourier, A, width=6, w=lambda: slot(8, 6, 2)),
    vision("Fourier over space", lambda s, y: torch.fft.fft2(y).real),
    vision("Fourier over channels", lambda s, y: torch.fft.fft(y, dim=1).abs(), (), A),
    text("complex magnitude", lambda s, y: torch.complex(y, s.b(y)).abs(), B, b=lambda: nn.Linear(12, 12)),
    text("meshgrid of sizes", lambda s, y: y * torch.arange(y.shape[-1], dtype=y.dtype), ()),
    text(
        "one-hot of argmax over time",
        lambda s, y: y * F.one_hot(s.b(y).squeeze(-1).argmax(1), 5).unsqueeze(-1),
        A,
        b=lambda: nn.Linear(12, 1),
    ),
]
