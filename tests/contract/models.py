"""Five networks, one of each family, as small as they can be and still have every construct that recipes trip over.

They are float64 and in training mode, with flags and gradients that differ from the defaults: a recipe has to leave
all of it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus

Batch = tuple[Tensor, Tensor]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 24), nn.Linear(24, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.second(F.gelu(self.first(x)))))


class Residual(nn.Module):
    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        same = stride == 1 and wide == out
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(wide, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.body = nn.Sequential(Residual(8, 8, 1), Residual(8, 12, 2))
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(F.relu(self.bn(self.stem(x))))
        return self.head(self.drop(features.mean((2, 3))))


class Attention(nn.Module):
    def __init__(self, wide: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, -1))


class Experts(nn.Module):
    """Soft top-2 routing over three small experts; every expert runs, so the routing is plain arithmetic."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.router = nn.Linear(wide, 3, bias=False)
        self.up = nn.ModuleList(nn.Linear(wide, 12) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(12, wide) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        floor = logits.topk(2, dim=-1).values[..., -1:]
        share = logits.masked_fill(logits < floor, -torch.inf).softmax(-1)
        outputs = [d(F.gelu(u(x))) for u, d in zip(self.up, self.down, strict=True)]
        return sum((share[..., i : i + 1] * y for i, y in enumerate(outputs)), torch.zeros_like(x))


class Block(nn.Module):
    def __init__(self, wide: int, causal: bool = False, experts: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(wide), Attention(wide, 2, causal)
        self.norm2 = nn.LayerNorm(wide)
        self.mlp = Experts(wide) if experts else nn.Sequential(nn.Linear(wide, 24), nn.GELU(), nn.Linear(24, wide))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, 16, 4, 4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 5, 16))
        self.block, self.norm, self.head = Block(16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.place
        return self.head(self.norm(self.block(x))[:, 0])


class Decoder(nn.Module):
    """Token ids in, next-token logits out; the head is tied to the embedding."""

    def __init__(self, experts: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 16), nn.Embedding(8, 16)
        self.block, self.norm = Block(16, causal=True, experts=experts), nn.LayerNorm(16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.block(x)))


def classify(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())


@dataclass(frozen=True)
class Case:
    """A network and the problem it is given."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] | None  # None: token ids
    loss: Callable[[nn.Module, Batch], Tensor]

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with seeded(11):
            model = self.build().to(dtype)
            for module in model.modules():  # trained norms are no ones and zeros; ties would hide mistakes
                if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                    nn.init.normal_(module.weight, 1.0, 0.3)
                    nn.init.normal_(module.bias, 0.0, 0.3)
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.running_mean, 0.0, 0.3)
                    nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model

    def batches(self, count: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> list[Batch]:
        draw = torch.Generator().manual_seed(seed)
        return [self._batch(draw, dtype) for _ in range(count)]

    def _batch(self, draw: torch.Generator, dtype: torch.dtype) -> Batch:
        labels = torch.randint(4, (6,), generator=draw)
        if self.shape is None:
            return torch.randint(11, (6, 8), generator=draw), labels
        return torch.randn(6, *self.shape, generator=draw, dtype=torch.float64).to(dtype), labels

    def task(self, dtype: torch.dtype = torch.float64, **changes: Any) -> prunus.Task:
        batches = self.batches(4, dtype)
        given = {"loss": self.loss, "train": batches, "calib": batches[:2], "example": (batches[0][0],)}
        given["general"] = batches[2:]
        return prunus.Task(**(given | changes))


CASES: dict[str, Case] = {
    c.name: c
    for c in (
        Case("mlp", Mlp, (12,), classify),
        Case("cnn", Cnn, (4, 8, 8), classify),
        Case("vit", Vit, (4, 8, 8), classify),
        Case("decoder", Decoder, None, next_token),
        Case("moe", lambda: Decoder(experts=True), None, next_token),
    )
}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A global seed that ends with the block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
