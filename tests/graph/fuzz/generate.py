"""From a seed to a network, an example for it, and a readable source."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.graph.fuzz.attention import ATTENTION
from tests.graph.fuzz.drawn import Drawn
from tests.graph.fuzz.images import IMAGE_BLOCKS
from tests.graph.fuzz.images_more import MORE_IMAGE_BLOCKS
from tests.graph.fuzz.pieces import Block
from tests.graph.fuzz.tokens import TOKEN_BLOCKS, FeedForward, GatedFeedForward

TIME, SIZE, WORDS = 6, 8, 12


@dataclass(frozen=True)
class Sample:
    """A random network. `source` says what it consists of, one line per block."""

    model: nn.Module
    example: Tensor
    source: str


class Stack(nn.Module):
    """Blocks one after the other; those listed in `twice` run twice."""

    def __init__(self, blocks: list[Block], twice: set[int]) -> None:
        super().__init__()
        self.blocks, self.twice = nn.ModuleList(blocks), twice

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.twice:
                x = block(x)
        return x


class ImageNet(nn.Module):
    def __init__(self, stem: nn.Module, body: Stack, width: int, head: str) -> None:
        super().__init__()
        self.stem, self.body, self.kind = stem, body, head
        self.pool = nn.AdaptiveAvgPool2d(2 if head == "flatten" else 1)
        self.head: nn.Module = (
            nn.Conv2d(width, 3, 1) if head == "map" else nn.Linear(width * (4 if head == "flatten" else 1), 5)
        )
        self.aux = nn.Linear(8, 3) if head == "two" else None

    def forward(self, x: Tensor) -> Any:
        early = self.stem(x)
        y = self.body(early)
        if self.kind == "map":
            return self.head(y)
        out = self.head(torch.flatten(self.pool(y), 1))
        return out if self.aux is None else {"out": out, "aux": self.aux(early.mean((2, 3)))}


class TokenNet(nn.Module):
    """From vectors, word numbers or the patches of an image to tokens, through blocks, to a head."""

    def __init__(self, kind: str, body: Stack, first: int, width: int, head: str) -> None:
        super().__init__()
        self.kind, self.body, self.read = kind, body, head
        if kind == "words":
            self.embed: nn.Module = nn.Embedding(WORDS, first)
        elif kind == "patches":
            self.embed = nn.Conv2d(3, first, (4, 8), stride=(4, 8))
        else:
            self.embed = nn.Linear(8, first)
        self.token = nn.Parameter(torch.randn(1, 1, first)) if head == "class" else None
        self.position = nn.Parameter(torch.randn(1, TIME, first) * 0.1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width * (TIME if head == "flatten" else 1), WORDS if head == "tied" else 5)
        if head == "tied":
            self.head = nn.Linear(width, WORDS, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if self.kind == "patches":
            y = y.flatten(2).transpose(1, 2)
        if self.token is not None:
            y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], dim=1)
        y = self.norm(self.body(y + self.position[:, : y.shape[1]]))
        if self.read == "class":
            return self.head(y[:, 0])
        if self.read == "flatten":
            return self.head(y.reshape(y.shape[0], -1))
        return self.head(y.mean(dim=1) if self.read == "mean" else y)


def network(seed: int) -> Sample:
    """The network of a seed: the same everywhere, weights included."""
    r = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = r.choice(("image", "image", "image", "vectors", "words", "words", "patches", "drawn", "drawn"))
        if kind == "image":
            return _image(r, seed)
        return _drawn(r, seed) if kind == "drawn" else _tokens(r, seed, kind)


def _stack(r: random.Random, kinds: list[type[Block]], width: int, lines: list[str]) -> tuple[Stack, int]:
    blocks: list[Block] = []
    twice: set[int] = set()
    for i, kind in enumerate(kinds):
        given = {"c": width, **kind.draw(r, width)}
        block = kind(**given)
        again = block.out == width and r.random() < 0.08
        if again:
            twice.add(i)
        call = f"{kind.__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())})"
        lines.append(f"x = {call}(x)" + ("  # runs twice" if again else ""))
        blocks.append(block)
        width = block.out
    return Stack(blocks, twice), width


def _image(r: random.Random, seed: int) -> Sample:
    lines = [f"# seed {seed}: x is [2, 3, {SIZE}, {SIZE}]", "x = early = Conv2d(3, 8, 3, padding=1)(x)"]
    kinds = [r.choice(r.choice((IMAGE_BLOCKS, MORE_IMAGE_BLOCKS))) for _ in range(r.randint(1, 4))]
    body, width = _stack(r, kinds, 8, lines)
    head = r.choice(("pool", "pool", "flatten", "map", "two"))
    lines.append(f"return head(x)  # {head}")
    model = ImageNet(nn.Conv2d(3, 8, 3, padding=1), body, width, head)
    return Sample(model, torch.randn(2, 3, SIZE, SIZE), "\n".join(lines))


def _tokens(r: random.Random, seed: int, kind: str) -> Sample:
    first = r.choice((8, 12, 16))
    kinds: list[type[Block]] = []
    for _ in range(r.randint(1, 2)):
        kinds.append(r.choice(ATTENTION if r.random() < 0.7 else TOKEN_BLOCKS))
        kinds.append(r.choice((FeedForward, GatedFeedForward, r.choice(TOKEN_BLOCKS))))
    head = r.choice(("mean", "each", "flatten") if kind != "patches" else ("mean", "class"))
    if kind == "words" and r.random() < 0.5:
        head = "tied"
    # Time mixing needs all time steps, a tied head needs the width of the embedding.
    barred = {name for name, bar in (("Mixer", kind == "patches"), ("Project", head == "tied")) if bar}
    kinds = [k if k.__name__ not in barred else FeedForward for k in kinds]
    size = {"vectors": f"[2, {TIME}, 8]", "words": f"numbers [2, {TIME}]", "patches": "[2, 3, 8, 16]"}[kind]
    lines = [f"# seed {seed}: x is {size}", f"x = embed(x) + position  # {kind}, width {first}"]
    body, width = _stack(r, kinds, first, lines)
    lines.append(f"return head(norm(x))  # {head}")
    example = {
        "vectors": lambda: torch.randn(2, TIME, 8),
        "words": lambda: torch.randint(0, WORDS, (2, TIME)),
        "patches": lambda: torch.randn(2, 3, 8, 16),
    }[kind]()
    return Sample(TokenNet(kind, body, first, width, head), example, "\n".join(lines))


def _drawn(r: random.Random, seed: int) -> Sample:
    image = r.random() < 0.6
    model = Drawn(seed, image, r.randint(6, 16))
    example = torch.randn(2, 3, SIZE, SIZE) if image else torch.randn(2, TIME, 8)
    lines = [f"# seed {seed}: x is {list(example.shape)}", *map(str, model.steps)]
    ends = ", ".join(model.ends)
    lines.append(f"return head({'mean over space of ' if image else ''}cat({ends}))")
    return Sample(model, example, "\n".join(lines))
