"""Sums, norms and products over a pruned axis, where what is masked is zero or where it is not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.constructs_maths import A, text, vision


class ChannelNorm(nn.Module):
    """A root-mean-square norm over the channels of images, with an activation behind it."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.eps, self.act = nn.Parameter(torch.randn(c)), 1e-5, nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
        return self.act(x * self.weight.reshape(1, -1, 1, 1))


class Response(nn.Module):
    """Global response normalization that keeps its epsilon (as in timm)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(1, c, 1, 1)), nn.Parameter(torch.randn(1, c, 1, 1))
        self.eps = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=(2, 3), keepdim=True)
        return self.gamma * (x * (size / (size.mean(1, keepdim=True) + self.eps))) + self.beta + x


class Shared(nn.Module):
    """Several heads of queries, one of keys and values; the joined axis is measured as width by heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.query, self.key, self.out = 4, nn.Linear(12, 24), nn.Linear(12, 6), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k = self.query(x).view(b, n, self.heads, -1).transpose(1, 2), self.key(x).unsqueeze(1)
        y = F.scaled_dot_product_attention(q, k, k)
        return self.out(y.transpose(1, 2).reshape(b, n, y.shape[-1] * self.heads))


class Parted(nn.Module):
    """A split into as many as it says and the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first = 6

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(x, [self.first, x.shape[-1] - self.first], -1)
        return torch.cat([one.tanh(), other], -1)


class Gathered(nn.Module):
    """Heads are scaled by entries of a table that keeps all its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.table = 3, nn.Parameter(torch.randn(3, 7))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        index = torch.tensor([1, 5]).unsqueeze(0).expand(self.heads, -1)
        scale = self.table.softmax(0).gather(1, index).sum(1)
        return (x.view(b, n, self.heads, -1) * scale[:, None]).reshape(b, n, -1)


def raised(y: Tensor) -> Tensor:
    z = y.clone()
    z.view(-1).add_(1)
    return y * z.sum(-1, keepdim=True)


SUMS = [
    text("sum of squares", lambda s, y: y / (y.pow(2).sum(-1, keepdim=True).sqrt() + 1)),
    text("largest size", lambda s, y: y / (y.norm(float("inf"), -1, keepdim=True) + 1)),
    text("inner products", lambda s, y: y * (y * y.sigmoid()).sum(-1, keepdim=True)),
    text("sum of sigmoids", lambda s, y: y * y.sigmoid().sum(-1, keepdim=True), (), A, "need not be zero"),
    text("norm of what is shifted", lambda s, y: y / (y + 1).norm(dim=-1, keepdim=True), (), A, "need not be zero"),
    text("sum with a constant", lambda s, y: y * (y + torch.ones(5, 1)).sum(-1, keepdim=True), (), A, "need not be"),
    text("sum after a write", lambda s, y: raised(y), (), A, "need not be zero"),
    text("sum of maxima", lambda s, y: y * y.clamp(min=0.1).sum(-1, keepdim=True), (), A, "need not be zero"),
    text("fewest", lambda s, y: y * y.norm(0, -1, keepdim=True), (), A, "need not be zero"),
    vision("norm over channels", lambda s, y: y / (F.relu(y).norm(dim=1, keepdim=True) + 1)),
    vision("RMSNorm over channels", lambda s, y: s.n(y), n=lambda: ChannelNorm(8)),
    vision("response norm with epsilon", lambda s, y: s.n(F.gelu(y)), n=lambda: Response(8)),
    vision("response norm of what is not zero", lambda s, y: s.n(y.sigmoid()), (), A, "tried", n=lambda: Response(8)),
    text(
        "attention scaled by its width",
        lambda s, y: F.scaled_dot_product_attention(s.q(y), s.k(y), y),
        A,
        ("q.weight", "k.weight"),
        "only whole heads",
        q=lambda: nn.Linear(12, 6),
        k=lambda: nn.Linear(12, 6),
    ),
    text("width by heads", lambda s, y: s.n(y), (*A, "n.query.weight"), ("n.key.weight",), "heads", n=Shared),
    text("split into a number and the rest", lambda s, y: s.n(y), n=Parted),
    text("gathered by head", lambda s, y: s.n(y), n=Gathered),
]
