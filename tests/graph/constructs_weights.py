"""Where weights come from: parametrizations, raw and shared parameters, functional calls; one construct each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.graph.nets import Case, Net, conv, head, image, tokens


@dataclass(frozen=True)
class Refused(Case):
    """A case whose frozen weights must be refused for a reason that contains `because`."""

    because: str = ""


def chain(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    """Two wrapped convolutions and a plain linear layer."""
    return lambda: Net(
        lambda s, x: head(s, s.b(F.relu(s.a(x)))), a=wrap(conv(3, 8)), b=wrap(conv(8, 8)), fc=nn.Linear(8, 4)
    )


def dense(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    """Two wrapped linear layers and a plain one."""
    return lambda: Net(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
        a=wrap(nn.Linear(8, 10)),
        b=wrap(nn.Linear(10, 10)),
        c=nn.Linear(10, 4),
    )


class Masked(nn.Module):
    """A parametrization that multiplies with a buffer."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand(*shape) > 0.3).float())

    def forward(self, w: Tensor) -> Tensor:
        return w * self.mask


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


class Positive(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.exp()


def with_parametrization(make: Callable[[nn.Linear], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", make(layer))  # type: ignore[arg-type]


class Standardized(nn.Conv2d):
    """Weight standardization: every filter has mean 0 and variance 1 (as in normalizer-free networks)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5).sqrt(), self.bias, padding=1)


class ScaledStandardized(nn.Conv2d):
    """The same by way of batch normalization of the filters, with a gain per filter."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(b, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(
            flat, None, None, weight=(self.gain * 0.1).view(-1), training=True, momentum=0.0, eps=1e-6
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=1)


class Raw(nn.Module):
    """Matrices that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(8, 10)), nn.Parameter(torch.randn(10))
        self.v, self.out = nn.Parameter(torch.randn(10, 6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(F.gelu(x @ self.w + self.b) @ self.v))


class Lists(nn.Module):
    """`ParameterList` and `ParameterDict`."""

    def __init__(self) -> None:
        super().__init__()
        self.ws = nn.ParameterList([nn.Parameter(torch.randn(8, 10)), nn.Parameter(torch.randn(10, 6))])
        self.bs = nn.ParameterDict({"a": nn.Parameter(torch.randn(10)), "b": nn.Parameter(torch.randn(6))})
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for w, name in zip(self.ws, ("a", "b"), strict=True):
            x = F.gelu(x @ w + self.bs[name])
        return self.out(x)


class Functional(nn.Module):
    """Convolution, normalization and product called as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8))
        self.scale, self.shift = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)
        self.v = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.w, self.b, padding=1)
        y = F.relu(F.batch_norm(y, self.mean, self.var, self.scale, self.shift))
        return F.linear(y.mean((2, 3)), self.v)


class LowRank(nn.Module):
    """A frozen weight with an update of low rank, added to the weight or to the output."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.w, self.merged = nn.Linear(8, 10), merged
        self.a, self.b = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(10, 3))
        self.out = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            y = F.linear(x, self.w.weight + self.b @ self.a, self.w.bias)
        else:
            y = self.w(x) + F.linear(F.linear(x, self.a), self.b)
        return self.out(F.gelu(y))


class Decomposed(nn.Module):
    """Magnitude times direction, written by hand (as in DoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(10, 8)), nn.Parameter(torch.rand(10, 1) + 0.5)
        self.out = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(x @ (self.g * self.v / self.v.norm(dim=1, keepdim=True)).t()))


class Hyper(nn.Module):
    """A network that makes the kernel of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.make, self.out = conv(3, 8), nn.Linear(8, 8 * 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        kernel = self.make(y.mean((0, 2, 3))).view(6, 8, 1, 1)
        return self.out(F.conv2d(y, kernel).mean((2, 3)))


class Autoencoder(nn.Module):
    """The decoder is the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bias = nn.Linear(8, 6), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.a(x)), self.a.weight.t(), self.bias)


class TiedEmbedding(nn.Module):
    """The classifier is the table of the embedding."""

    def __init__(self, between: int) -> None:
        super().__init__()
        self.e, self.a, self.b = nn.Embedding(20, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.e(x)
        for _ in range(self.between):
            y = y + self.b(F.gelu(self.a(y)))
        return F.linear(y, self.e.weight)


class Renormed(nn.Module):
    """The forward changes a parameter in place."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.b = nn.Embedding(20, 8, max_norm=1.0), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.e(x)))


class Scales(nn.Module):
    """LayerScale, a scalar gain, a learned temperature and a bias per position."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.gamma, self.gain = nn.Parameter(torch.rand(12) + 0.5), nn.Parameter(torch.tensor(0.7))
        self.place = nn.Parameter(torch.randn(1, 5, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.place[:, : x.shape[1]]
        return self.out(F.gelu(y + self.gamma * self.b(y) * self.gain.exp()))


class ClassToken(nn.Module):
    """Learned tokens before the others and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 12)), nn.Embedding(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), self.a(x)], 1)
        y = y + self.place(torch.arange(y.shape[1]))
        return self.c(F.gelu(self.b(F.gelu(y))))[:, 0]


class Projected(nn.Module):
    """Random features: the first matrix is a buffer, which nothing masks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(8, 12))
        self.a, self.out = nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.a(torch.cos(x @ self.matrix))))


class Experts(nn.Module):
    """A soft mixture of experts whose weights lie in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 10)), nn.Parameter(torch.randn(3, 10, 6))
        self.route, self.out = nn.Linear(8, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("btd,edh->bteh", x, self.up)
        z = torch.einsum("bteh,eho->bteo", F.gelu(y), self.down)
        return self.out((z * self.route(x).softmax(-1).unsqueeze(-1)).sum(2))


_CONVS = ("a.weight", "b.weight")


def original(*names: str, tail: str = "original") -> tuple[str, ...]:
    return tuple(f"{name}.parametrizations.weight.{tail}" for name in names)


WEIGHTS: list[Case] = [
    Case("weight norm", chain(parametrizations.weight_norm), image(), original("a", "b", tail="original0")),
    Case("weight norm, linear", dense(parametrizations.weight_norm), tokens(), original("a", "b", tail="original0")),
    Case(
        "weight norm over all",
        dense(lambda m: parametrizations.weight_norm(m, dim=None)),
        tokens(),
    ),
    Case("weight norm of inputs", dense(lambda m: parametrizations.weight_norm(m, dim=1)), tokens()),
    Case("weight norm by a hook", chain(nn.utils.weight_norm), image(), ("a.weight_g", "b.weight_g")),
    Case("spectral norm, linear", dense(parametrizations.spectral_norm), tokens(), original("a", "b")),
    Case("spectral norm", chain(parametrizations.spectral_norm), image()),
    Case("spectral norm by a hook", chain(nn.utils.spectral_norm), image()),
    Case(
        "spectral norm by a hook, linear", dense(nn.utils.spectral_norm), tokens(), ("a.weight_orig", "b.weight_orig")
    ),
    Case("orthogonal", dense(parametrizations.orthogonal), tokens()),
    Case(
        "parametrization with a buffer",
        dense(with_parametrization(lambda m: Masked(*m.weight.shape))),
        tokens(),
        original("a", "b"),
    ),
    Case(
        "symmetric",
        lambda: dense(lambda m: m if m.in_features == 8 else with_parametrization(lambda m: Symmetric())(m))(),
        tokens(),
    ),
    # exp(0) = 1: a masked input column is no zero, so only what a plain layer consumes can go.
    Refused(
        "positive", dense(with_parametrization(lambda m: Positive())), tokens(), original("b"), original("a"), "tried"
    ),
    Case(
        "weight standardization",
        lambda: Net(
            lambda s, x: head(s, s.b(F.relu(s.a(x)))),
            a=Standardized(3, 8, 3),
            b=Standardized(8, 8, 3),
            fc=nn.Linear(8, 4),
        ),
        image(),
        ("b.weight",),
        ("a.weight",),
    ),
    Case(
        "scaled weight standardization",
        lambda: Net(
            lambda s, x: head(s, s.b(F.relu(s.a(x)))),
            a=ScaledStandardized(3, 8),
            b=ScaledStandardized(8, 8),
            fc=nn.Linear(8, 4),
        ),
        image(),
        ("b.weight",),
        ("a.weight",),
    ),
    Case("raw parameters", Raw, tokens(), ("w", "v"), ("out.weight",)),
    Case("lists of parameters", Lists, tokens(), ("ws.0", "ws.1"), ("out.weight",)),
    Case("functional", Functional, image(), ("w",), ("v",)),
    Case("low rank beside", lambda: LowRank(False), tokens(), ("w.weight", "a", "b")),
    Case("low rank inside", lambda: LowRank(True), tokens(), ("w.weight",)),
    Case("magnitude and direction", Decomposed, tokens(), ("g",)),
    Case("hypernetwork", Hyper, image(), ()),
    Case("transposed decoder", Autoencoder, tokens(), ("a.weight",)),
    Case("tied embedding", lambda: TiedEmbedding(1), lambda: torch.randint(0, 20, (2, 5)), ("e.weight", "a.weight")),
    Case(
        "tied embedding, reused blocks",
        lambda: TiedEmbedding(2),
        lambda: torch.randint(0, 20, (2, 5)),
        ("e.weight", "a.weight"),
    ),
    Case("embedding of bounded norm", Renormed, lambda: torch.randint(0, 20, (2, 5)), (), ("b.weight",)),
    Case(
        "embedding bag",
        lambda: Net(lambda s, x: s.b(F.relu(s.e(x))), e=nn.EmbeddingBag(20, 8), b=nn.Linear(8, 4)),
        lambda: torch.randint(0, 20, (2, 5)),
        ("e.weight",),
    ),
    Case(
        "embedding bag, largest",
        lambda: Net(lambda s, x: s.b(F.relu(s.e(x))), e=nn.EmbeddingBag(20, 8, mode="max"), b=nn.Linear(8, 4)),
        lambda: torch.randint(0, 20, (2, 5)),
        ("e.weight",),
    ),
    Case("scales and tables", Scales, tokens(), ("a.weight",)),
    Case("class token", ClassToken, tokens(), ("a.weight", "b.weight")),
    Case("random features", Projected, tokens(), ("a.weight",)),
    Case("soft experts", Experts, tokens(), ("up", "down")),
]
