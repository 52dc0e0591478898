"""Blocks of known networks and unusual ways to hold, cast and call modules, one construct each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from tests.graph.constructs_maths import A, B, slot, text, vision
from tests.graph.nets import Case, Net, conv, head, image, tokens


class Width(nn.Module):
    """A block that uses the width it was made with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.b = width, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(x) * self.width**-0.5


class ConvLSTM(nn.Module):
    """A convolutional LSTM over two steps, started from zeros of the size it keeps."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.gates = hidden, conv(c + hidden, 4 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], self.hidden, *x.shape[2:], dtype=x.dtype)
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


class Highway(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.h, self.t = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.t(x))
        return t * F.relu(self.h(x)) + (1 - t) * x


class NonLocal(nn.Module):
    """Every pixel looks at every other one."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = conv(c, 4, 1), conv(c, 4, 1), conv(c, 6, 1), conv(6, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        mixed = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
        return x + self.o(mixed.unflatten(2, x.shape[2:]))


class CoordinateGate(nn.Module):
    """Attention along height and width (CoordAttention)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.h, self.w = conv(c, 4, 1), conv(4, c, 1), conv(4, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        y = F.relu(self.a(torch.cat([height, width], 2)))
        height, width = y.split([x.shape[2], x.shape[3]], 2)
        return x * self.h(height).sigmoid() * self.w(width.transpose(2, 3)).sigmoid()


class Branches(nn.Module):
    """Convolution, pointwise convolution and identity, each normalized (RepVGG)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = conv(c, c), conv(c, c, 1)
        self.n = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.n[0](self.a(x)) + self.n[1](self.b(x)) + self.n[2](x))


class Conditional(nn.Module):
    """A kernel mixed from several by the input (CondConv)."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.w, self.r = nn.Parameter(torch.randn(3, b, a, 3, 3)), nn.Linear(a, 3)

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(self.r(x.mean((2, 3))))
        kernel = (share[:, :, None, None, None, None] * self.w).sum(1)
        return F.conv2d(x.flatten(0, 1)[None], kernel.flatten(0, 1), padding=1, groups=x.shape[0]).unflatten(
            1, (x.shape[0], -1)
        )[0]


class Ensemble(nn.Module):
    """Several small networks whose weights are stacked, called by `vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(3, 8, 10)), nn.Parameter(torch.randn(3, 10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda w, v: F.relu(x @ w) @ v)(self.w, self.v).mean(0)


class Stored(nn.Module):
    """Keeps an intermediate result and returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 4)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.a(x)
        self.seen = y.detach()
        z = self.b(F.relu(y))
        return {"features": z, "logits": self.c(z)}


class Cast(nn.Module):
    """Computes in another type in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.softplus(self.a(x).double()).to(x.dtype))


class Inference(nn.Module):
    """Runs in inference mode, in which PyTorch hands compositions over whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = conv(3, 8), nn.BatchNorm2d(8), nn.Linear(8, 6)
        self.r, self.out = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.n(self.a(x))), 2).flatten(2).transpose(1, 2)
        return self.out(self.r(self.b(y))[0])


class Routed(nn.Module):
    """Each token goes to one of many experts; those that no token of the example reaches do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.out = nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(12, 4)
        self.e = nn.ModuleList(nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 12)) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        y, best = self.a(x).flatten(0, 1), self.r(x).flatten(0, 1).argmax(-1)
        z = torch.zeros_like(y)
        for i in best.unique().tolist():
            rows = (best == i).nonzero().squeeze(-1)
            z = z.index_add(0, rows, self.e[i](y[rows]))
        return self.out(z)


def pruned(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", 0.3)  # type: ignore[no-untyped-call,no-any-return]


def inverted(s: Any, x: Tensor) -> Tensor:
    y = s.a(x)
    return head(s, y + s.d(F.hardswish(s.c(F.hardswish(s.b(y))))))


BLOCKS = [
    text("width in the code of a block", lambda s, y: s.w(y), ("w.b.weight",), w=lambda: Width(12)),
    vision("convolutional LSTM", lambda s, y: s.r(y), (*A, "r.gates.weight"), width=5, r=lambda: ConvLSTM(8, 5)),
    text("highway", lambda s, y: s.h(y), (*A, "h.h.weight", "h.t.weight"), h=lambda: Highway(12)),
    vision("non-local", lambda s, y: s.g(y), (*A, "g.v.weight", "g.o.weight"), g=lambda: NonLocal(8)),
    vision("coordinate attention", lambda s, y: s.g(y), (*A, "g.a.weight"), g=lambda: CoordinateGate(8)),
    vision("parallel branches", lambda s, y: s.g(y), (*A, "g.a.weight", "g.b.weight"), g=lambda: Branches(8)),
    vision("conditional convolution", lambda s, y: s.g(y), (), width=6, g=lambda: Conditional(8, 6)),
    vision("circular convolution", lambda s, y: s.b(y), B, width=6, b=lambda: conv(8, 6, padding_mode="circular")),
    vision("reflected convolution", lambda s, y: s.b(y), B, width=6, b=lambda: conv(8, 6, padding_mode="reflect")),
    vision("same padding", lambda s, y: s.b(y), B, width=6, b=lambda: nn.Conv2d(8, 6, 4, padding="same")),
    vision("dropped channels", lambda s, y: F.dropout2d(s.d(y), 0.2, False), d=lambda: nn.Dropout2d(0.2)),
    vision("upsampling", lambda s, y: s.u(s.b(y)), B, width=2, b=lambda: conv(8, 8), u=lambda: nn.PixelShuffle(2)),
    vision(
        "channels last in memory", lambda s, y: s.b(y.to(memory_format=torch.channels_last)), B, b=lambda: conv(8, 8)
    ),
    vision("checkpointed", lambda s, y: checkpoint(s.b, y, use_reentrant=False), B, b=lambda: conv(8, 8)),
    vision("pruned by masks", lambda s, y: s.b(F.relu(y)), (*A, "b.weight_orig"), b=lambda: pruned(conv(8, 8))),
    text("flattened, then normalized", lambda s, y: s.n(y.flatten(1)).view_as(y), n=lambda: nn.BatchNorm1d(60)),
    text(
        "normalized weight", lambda s, y: F.linear(y, F.normalize(s.b.weight)), B, width=6, b=lambda: nn.Linear(12, 6)
    ),
    text(
        "weight over its norm",
        lambda s, y: F.linear(y, s.b.weight / s.b.weight.norm()),
        B,
        width=6,
        b=lambda: nn.Linear(12, 6),
    ),
    text("scaled by a sum of weights", lambda s, y: s.b(y) * s.b.weight.sum(), B, width=6, b=lambda: nn.Linear(12, 6)),
    text("sum of two tables", lambda s, y: y + s.p(torch.arange(5)), p=lambda: nn.Embedding(5, 12)),
    text(
        "gated by a parameter",
        lambda s, y: y * s.g[0].sigmoid() + s.b(y) * (1 - s.g[0].sigmoid()),
        B,
        b=lambda: nn.Linear(12, 12),
        g=lambda: slot(12),
    ),
    text(
        "mixture by a parameter",
        lambda s, y: (s.g[0].softmax(0)[:, None, None, None] * torch.stack([y, s.b(y)])).sum(0),
        B,
        b=lambda: nn.Linear(12, 12),
        g=lambda: slot(2),
    ),
    vision("expanded like another", lambda s, y: s.b(y).expand_as(y) * y, b=lambda: conv(8, 1)),
    Case("inference mode", Inference, image(), ("a.weight", "b.weight", "r.weight_hh_l0")),
    Case(
        "experts that no token reached",
        Routed,
        tokens(),
        ("a.weight", *(f"e.{i}.{j}.weight" for i in range(6) for j in (0, 2))),
    ),
    Case("ensemble by vmap", Ensemble, tokens()),
    Case("stored and returned", Stored, tokens(), ("a.weight",), ("b.weight", "c.weight")),
    Case("cast in between", Cast, tokens(), ("a.weight",), ("b.weight",)),
    Case(
        "inverted residual",
        lambda: Net(
            inverted, a=conv(3, 8), b=conv(8, 12, 1), c=conv(12, 12, groups=12), d=conv(12, 8, 1), fc=nn.Linear(8, 4)
        ),
        image(),
        ("a.weight", "b.weight", "c.weight", "d.weight"),
    ),
]
