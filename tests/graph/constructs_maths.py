"""Normalization, activations, products and reductions, one construct each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs_weights import Refused
from tests.graph.nets import Net, conv, head, image, tokens

Make = Callable[[], nn.Module]
A, B = ("a.weight",), ("a.weight", "b.weight")


def vision(
    name: str,
    between: Callable[[Any, Tensor], Tensor],
    prunable: tuple[str, ...] = A,
    frozen: tuple[str, ...] = (),
    because: str = "",
    width: int = 8,
    **layers: Make,
) -> Refused:
    """A convolution `a` with 8 channels, something, the mean over space and a linear layer from `width` channels."""

    def build() -> nn.Module:
        made = {key: make() for key, make in layers.items()}
        return Net(lambda s, x: head(s, between(s, s.a(x))), a=conv(3, 8), **made, fc=nn.Linear(width, 4))

    return Refused(name, build, image(), prunable, frozen, because)


def text(
    name: str,
    between: Callable[[Any, Tensor], Tensor],
    prunable: tuple[str, ...] = A,
    frozen: tuple[str, ...] = (),
    because: str = "",
    width: int = 12,
    **layers: Make,
) -> Refused:
    """A linear layer `a` with 12 neurons, something, and a linear layer from `width` features."""

    def build() -> nn.Module:
        made = {key: make() for key, make in layers.items()}
        return Net(lambda s, x: s.fc(between(s, s.a(x))), a=nn.Linear(8, 12), **made, fc=nn.Linear(width, 4))

    return Refused(name, build, tokens(), prunable, frozen, because)


class FrozenNorm(nn.Module):
    """Batch normalization of buffers only, written out."""

    def __init__(self, c: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean"):
            self.register_buffer(name, torch.randn(c))
        self.register_buffer("var", torch.rand(c) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale)


class ResponseNorm(nn.Module):
    """Global response normalization (ConvNeXt V2)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(1, c, 1, 1)), nn.Parameter(torch.randn(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(2, 3), keepdim=True)
        return self.gamma * (x * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta + x


def maxout(y: Tensor) -> Tensor:
    return y.view(y.shape[0], -1, 2, *y.shape[2:]).amax(2)


def written(y: Tensor) -> Tensor:
    y[:, :, 2:4] = 0.5
    return y


def rectified(y: Tensor) -> Tensor:
    y[y < 0] = 0
    return y


def first_channel(y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


NORMS = [
    text("BatchNorm1d over tokens", lambda s, y: s.n(y.transpose(1, 2)).transpose(1, 2), n=lambda: nn.BatchNorm1d(12)),
    vision("BatchNorm without scale", lambda s, y: s.n(y), n=lambda: nn.BatchNorm2d(8, affine=False)),
    vision("BatchNorm of the batch", lambda s, y: s.n(y), n=lambda: nn.BatchNorm2d(8, track_running_stats=False)),
    vision("BatchNorm3d", lambda s, y: s.n(y.unsqueeze(2)).squeeze(2), n=lambda: nn.BatchNorm3d(8)),
    vision("SyncBatchNorm", lambda s, y: s.n(y), n=lambda: nn.SyncBatchNorm(8)),
    vision("BatchNorm of buffers", lambda s, y: s.n(y), n=lambda: FrozenNorm(8)),
    vision("BatchNorm before", lambda s, y: s.b(F.relu(s.n(y))), B, n=lambda: nn.BatchNorm2d(8), b=lambda: conv(8, 8)),
    vision("InstanceNorm without scale", lambda s, y: s.n(y) * y, n=lambda: nn.InstanceNorm2d(8)),
    vision(
        "InstanceNorm with statistics",
        lambda s, y: s.n(y),
        n=lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    ),
    vision("GroupNorm of one group", lambda s, y: s.n(y), (), A, "statistics", n=lambda: nn.GroupNorm(1, 8)),
    vision("GroupNorm of single channels", lambda s, y: s.n(y), n=lambda: nn.GroupNorm(8, 8)),
    vision("LayerNorm over space", lambda s, y: s.n(y), n=lambda: nn.LayerNorm([8, 8])),
    vision("LayerNorm over all", lambda s, y: s.n(y), (), A, "statistics", n=lambda: nn.LayerNorm([8, 8, 8])),
    text("RMSNorm by hand", lambda s, y: y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6), (), A, "averages"),
    vision("global response norm", lambda s, y: s.n(y), (), A, "averages", n=lambda: ResponseNorm(8)),
    text("cosine similarity", lambda s, y: y * F.cosine_similarity(y, y.roll(1, 1), dim=-1)[..., None]),
    vision("divisive norm over space", lambda s, y: y / (1e-3 + y.abs().mean((2, 3), keepdim=True))),
    text("standardized over time", lambda s, y: (y - y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1)),
]

ACTIVATIONS = [
    vision("PReLU of one weight", lambda s, y: s.p(y), p=nn.PReLU),
    vision("RReLU", lambda s, y: s.p(y), p=nn.RReLU),
    vision("maxout", lambda s, y: maxout(y), width=4),
    vision("largest half", lambda s, y: torch.maximum(*y.chunk(2, 1)), width=4),
    vision("concatenated ReLU", lambda s, y: torch.cat([y, -y], 1).relu(), width=16),
    vision("softmax over space", lambda s, y: y * y.flatten(2).softmax(-1).view_as(y)),
    vision("Softmax2d", lambda s, y: s.p(y), (), A, "mixes", p=nn.Softmax2d),
    vision("where", lambda s, y: torch.where(y > 0, y, 0.1 * y)),
    vision("masked_fill", lambda s, y: y.masked_fill(y < 0, 0.0)),
    vision("masked write", lambda s, y: rectified(y)),
    vision("space written", lambda s, y: written(y.clone())),
    vision("one channel written", lambda s, y: first_channel(y.clone()), (), A, "takes"),
    vision("clamp and round", lambda s, y: y.clamp(-1, 1) + (y.round() - y).detach()),
    vision("clamp by a tensor", lambda s, y: torch.minimum(y, s.t[0].abs().mean()), t=lambda: slot(5)),
    vision("logsumexp pool", lambda s, y: y.logsumexp((2, 3), keepdim=True)),
    text("SwiGLU", lambda s, y: F.silu((p := y.split(6, -1))[1]) * p[0], (), width=6),
    text("bilinear gate", lambda s, y: s.b(y) * torch.tanh(y), B, b=lambda: nn.Linear(12, 12)),
    text("dropout", lambda s, y: F.alpha_dropout(F.dropout(y, 0.1, False), 0.1, False)),
    text("noise", lambda s, y: y + 0 * torch.randn_like(y)),
]


def slot(*shape: int) -> Any:
    """A raw parameter, as `s.name[0]`."""
    return nn.ParameterList([nn.Parameter(torch.randn(*shape))])


def gram(s: Any, y: Tensor) -> Tensor:
    z = y.flatten(2)
    return torch.einsum("bin,bjn->bij", z, z)[..., None, None].flatten(1, 2)


PRODUCTS = [
    vision(
        "einsum pointwise",
        lambda s, y: torch.einsum("bchw,oc->bohw", y, s.b.weight),
        B,
        width=6,
        b=lambda: nn.Linear(8, 6),
    ),
    vision("einsum with a vector", lambda s, y: torch.einsum("bchw,c->bchw", y, s.p[0]), p=lambda: slot(8)),
    vision("einsum to a sum", lambda s, y: y * torch.einsum("bchw,c->bhw", y, s.p[0]).unsqueeze(1), p=lambda: slot(8)),
    vision("einsum per head", lambda s, y: torch.einsum("bchw,coh->bcow", y, s.p[0]), p=lambda: slot(8, 6, 8)),
    text("einsum over tokens", lambda s, y: torch.einsum("btc,ts->bsc", y, s.p[0]), p=lambda: slot(5, 3)),
    text("einsum of activations", lambda s, y: torch.einsum("btc,bsc->bts", y, y).softmax(-1) @ y, ()),
    text("tensordot", lambda s, y: torch.tensordot(y, s.p[0], dims=([2], [0])), width=6, p=lambda: slot(12, 6)),
    text(
        "outer product",
        lambda s, y: torch.einsum("bti,btj->btij", s.c(y), s.b(y)).flatten(2),
        b=lambda: nn.Linear(12, 4),
        c=lambda: nn.Linear(12, 3),
    ),
    vision("Gram matrix", gram, (), width=64),
    text(
        "adjacency",
        lambda s, y: F.relu(s.g(s.b(F.relu(s.g(y))))),
        B,
        width=6,
        g=lambda: Adjacency(5),
        b=lambda: nn.Linear(12, 6),
    ),
    text("distance to points", lambda s, y: torch.cdist(y, s.p[0]), (), A, "distance", width=6, p=lambda: slot(6, 12)),
    text("Bilinear", lambda s, y: s.m(y, y), width=6, m=lambda: nn.Bilinear(12, 12, 6)),
    text(
        "matrix product of a stack",
        lambda s, y: torch.matmul(y.unsqueeze(2), s.p[0]).squeeze(2),
        width=6,
        p=lambda: slot(12, 6),
    ),
    text("vector product", lambda s, y: y * (y @ s.p[0]).unsqueeze(-1), p=lambda: slot(12)),
    text(
        "batched product", lambda s, y: torch.bmm(y, s.p[0].expand(y.shape[0], -1, -1)), width=6, p=lambda: slot(12, 6)
    ),
    text(
        "baddbmm",
        lambda s, y: torch.baddbmm(s.q[0], y, s.p[0].expand(y.shape[0], -1, -1)),
        width=6,
        p=lambda: slot(12, 6),
        q=lambda: slot(6),
    ),
    text("chain of matrices", lambda s, y: y @ (s.p[0] @ s.q[0]), width=6, p=lambda: slot(12, 3), q=lambda: slot(3, 6)),
    text(
        "Kronecker",
        lambda s, y: y @ torch.kron(s.p[0], s.q[0]),
        (),
        width=6,
        p=lambda: slot(4, 3),
        q=lambda: slot(3, 2),
    ),
    text("inverse", lambda s, y: y @ torch.linalg.inv(y.transpose(1, 2) @ y + torch.eye(12)), (), A),
]


class Adjacency(nn.Module):
    """A graph convolution: neighbours are averaged by a fixed matrix."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.rand(n, n).softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix @ x


REDUCTIONS = [
    text("cumulative sum over time", lambda s, y: y.cumsum(1)),
    text("cumulative sum over features", lambda s, y: y.cumsum(-1), (), A, "mixes"),
    text("largest over time", lambda s, y: y.max(1, keepdim=True).values + y.topk(2, 1).values.sum(1, keepdim=True)),
    text("sorted over time", lambda s, y: y.sort(1).values),
    text("sorted over features", lambda s, y: y.sort(-1).values, (), A, "mixes"),
    text("median over features", lambda s, y: y * y.median(-1, keepdim=True).values, (), A),
    text("standard deviation over features", lambda s, y: y / y.std(-1, keepdim=True), (), A, "averages"),
    text("sum over features", lambda s, y: y * y.sum(-1, keepdim=True)),
    text("norm over features", lambda s, y: y / (1 + y.norm(dim=-1, keepdim=True))),
    text("largest feature", lambda s, y: y * (y.argmax(-1, keepdim=True) + 1), (), A),
    vision(
        "squeeze-excite by vectors",
        lambda s, y: y * torch.sigmoid(s.c(F.relu(s.b(y.mean((2, 3)))))).view(y.shape[0], -1, 1, 1),
        (*B, "c.weight"),
        b=lambda: nn.Linear(8, 4),
        c=lambda: nn.Linear(4, 8),
    ),
    vision(
        "channel attention by convolution over channels",
        lambda s, y: y * torch.sigmoid(s.b(y.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(-1),
        (),
        A,
        "slides",
        b=lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False),
    ),
    vision(
        "spatial attention",
        lambda s, y: y * torch.sigmoid(s.b(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1))),
        (),
        A,
        "averages",
        b=lambda: nn.Conv2d(2, 1, 3, padding=1),
    ),
    vision(
        "selected kernels",
        lambda s, y: (torch.stack([y, s.b(y)], 1) * s.c(y.mean((2, 3))).view(y.shape[0], 2, 8, 1, 1).softmax(1)).sum(1),
        (),
        b=lambda: conv(8, 8),
        c=lambda: nn.Linear(8, 16),
    ),
    vision(
        "stack and mean",
        lambda s, y: torch.stack([y, s.b(y), s.c(y)], 0).mean(0),
        (*B, "c.weight"),
        b=lambda: conv(8, 8),
        c=lambda: conv(8, 8),
    ),
    text("differences over features", lambda s, y: y.diff(dim=-1), (), A, width=11),
    text("differences over time", lambda s, y: y.diff(dim=1)),
    text("trace", lambda s, y: y * y[:, :, :5].diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]),
]

MATHS = [*NORMS, *ACTIVATIONS, *PRODUCTS, *REDUCTIONS]
