"""Random small networks of many block kinds: refused or equal, never wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.graph.flow import Flow
from tests.graph.nets import Gate, shuffle
from tests.graph.proof import producers, prove


def norm(r: random.Random, c: int) -> nn.Module:
    kinds = [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm2d, lambda n: nn.GroupNorm(4, n), nn.Identity, nn.PReLU]
    kind = r.choice(kinds)
    return nn.Identity() if kind is nn.Identity else kind(c)  # type: ignore[operator,no-any-return]


class Residual(nn.Module):
    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        inner = r.choice((8, 12))
        self.a, self.n, self.b = nn.Conv2d(c, inner, 3, padding=1), norm(r, inner), nn.Conv2d(inner, c, 3, padding=1)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.b(F.silu(self.n(self.a(x)))))


class Inverted(nn.Module):
    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(c, 2 * c, 1, bias=False), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.n, self.c, self.g = norm(r, 2 * c), nn.Conv2d(2 * c, c, 1), Gate(2 * c)
        self.skip, self.out = r.random() < 0.6, c

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.g(F.hardswish(self.n(self.b(F.relu6(self.a(x)))))))
        return x + y if self.skip else y


class Dense(nn.Module):
    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        self.n, self.a, self.b = norm(r, c), nn.Conv2d(c, 4, 3, padding=1), nn.Conv2d(c + 4, 4, 1)
        self.out = c + 8

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.a(self.n(x))], 1)
        return torch.cat([y, self.b(y)], 1)


class Grouped(nn.Module):
    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        self.g = 2
        self.a, self.b = nn.Conv2d(c, 8, 1, groups=self.g), nn.Conv2d(8, 12, 3, padding=1, groups=self.g)
        self.mix, self.out = r.random() < 0.5, 12

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.a(x))
        return self.b(shuffle(y, self.g) if self.mix else y)


class Cross(nn.Module):
    """CSP / C2f: one half goes on, everything is joined."""

    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(c, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.add, self.out = r.random() < 0.5, 8

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        y = self.b(right)
        return self.c(torch.cat([left, right, y + right if self.add else y], 1))


class Gated(nn.Module):
    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        self.a, self.n, self.out = nn.Conv2d(c, 16, 3, padding=1), norm(r, 8), 8

    def forward(self, x: Tensor) -> Tensor:
        return self.n(F.glu(self.a(x), 1))


class Scale(nn.Module):
    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(c, 8, 2, 2)
        self.down, self.out = nn.Conv2d(c, 8, 3, padding=1, stride=1), 8

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(self.up(x), 2)
        return y + F.interpolate(F.max_pool2d(self.down(x), 2), scale_factor=2, mode="nearest")


class Move(nn.Module):
    """Data movement on channels, some of it with sizes that the code fixes."""

    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        moves: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
            "flip": (lambda x: x.flip(1), c),
            "roll": (lambda x: x.roll(2, 1), c),
            "pad": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), c + 4),
            "half": (lambda x: x[:, : c // 2], c // 2),
            "odd": (lambda x: x[:, 1::2], c // 2),
            "pixels": (lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), c),
            "even, odd": (lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1), c),
            "repeat": (lambda x: x.repeat(1, 2, 1, 1), 2 * c),
            "softmax": (lambda x: x.softmax(1), c),
            "deviation": (lambda x: x - x.mean(1, keepdim=True), c),
            "last": (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (c,)).permute(0, 3, 1, 2), c),
            "tokens": (lambda x: x.flatten(2).transpose(1, 2).reshape(x.shape[0], 8, 8, -1).permute(0, 3, 1, 2), c),
        }
        self.name = r.choice(sorted(moves))
        self.move, out = moves[self.name]
        self.c, self.out = nn.Conv2d(out, 8, 1), 8

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.move(x))


class FeedForward(nn.Module):
    def __init__(self, r: random.Random, c: int) -> None:
        super().__init__()
        self.n = nn.LayerNorm(c) if r.random() < 0.5 else nn.Identity()
        self.a, self.b, self.out = nn.Linear(c, 12), nn.Linear(12, c), c

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        return (y + self.b(F.gelu(self.a(self.n(y))))).permute(0, 3, 1, 2)


BLOCKS = (Residual, Inverted, Dense, Grouped, Cross, Gated, Scale, Move, FeedForward)


class Fuzz(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        r = random.Random(seed)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        width, blocks = 8, []
        for _ in range(r.randint(2, 5)):
            block = r.choice(BLOCKS)(r, width)
            blocks.append(block)
            width = int(block.out)
        self.blocks = nn.Sequential(*blocks)
        self.flat = r.random() < 0.4
        self.head = nn.Linear(width * 16 if self.flat else width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.stem(x))
        return self.head(F.adaptive_avg_pool2d(y, 4).flatten(1) if self.flat else y.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flow, "strict", True)
    torch.manual_seed(seed)
    structure, _ = prove(Fuzz(seed), torch.randn(2, 3, 8, 8), fraction=(0.3, 0.4, 0.5)[seed % 3])
    assert set(structure.frozen) | producers(structure) >= {"stem.weight", "head.weight"}
