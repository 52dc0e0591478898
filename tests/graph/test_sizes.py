"""Where the sizes in a forward come from decides what can be removed, before anything is tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.graph import trace
from tests.graph.proof import producers, prove


class Sized(nn.Module):
    """A network with integers of its own, and a forward that is passed in."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **fields: Any) -> None:
        super().__init__()
        self.function = forward
        for name, value in fields.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def heads(
    split: Callable[[Any, Tensor], Tensor], join: Callable[[Any, Tensor], Tensor]
) -> Callable[[Any, Tensor], Tensor]:
    """Attention by hand; `split` makes `[batch, length, heads, width]`, `join` puts heads together again."""

    def forward(s: Any, x: Tensor) -> Tensor:
        q, k, v = (split(s, layer(x)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.o(join(s, ((q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v).transpose(1, 2)))

    return forward


def attention(split: Callable[[Any, Tensor], Tensor], join: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    layers = {n: nn.Linear(12, 24) for n in "qkv"}
    return Sized(heads(split, join), **layers, o=nn.Linear(24, 5), heads=4, width=6, inner=24, both=(4, 6))


TOKENS = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0))
FOLLOW = {
    "attribute": (lambda s, x: x.view(*x.shape[:2], s.heads, s.width), lambda s, x: x.flatten(2)),
    "minus one": (lambda s, x: x.view(*x.shape[:2], -1, s.width), lambda s, x: x.reshape(*x.shape[:2], -1)),
    "quotient": (lambda s, x: x.view(*x.shape[:2], s.heads, x.shape[2] // s.heads), lambda s, x: x.flatten(2)),
    "product": (lambda s, x: x.unflatten(-1, (-1, s.width)), lambda s, x: x.reshape(*x.shape[:2], s.heads * s.width)),
    "kept product": (lambda s, x: x.view(*x.shape[:2], -1, 6), lambda s, x: x.reshape(*x.shape[:2], s.inner)),
    "tuple": (lambda s, x: x.reshape(*x.shape[:2], *s.both), lambda s, x: x.flatten(2)),
    "two quotients": (lambda s, x: x.view(*x.shape[:2], -1, s.inner // s.heads), lambda s, x: x.flatten(2)),
}


@pytest.mark.parametrize("name", FOLLOW)
def test_heads_go_where_their_number_can_be_repaired(name: str) -> None:
    torch.manual_seed(0)
    structure, small = prove(attention(*FOLLOW[name]), TOKENS)
    assert [(g.kind, g.units) for g in structure.groups] == [("head", 4)]
    assert small.q.weight.shape == (12, 12)
    assert [(g.kind, g.units) for g in trace(attention(*FOLLOW[name]), TOKENS, probe=False).groups] == [("head", 4)]


@pytest.mark.parametrize("probe", [True, False])
def test_a_number_in_the_code_keeps_the_heads(probe: bool) -> None:
    model = attention(lambda s, x: x.view(*x.shape[:2], 4, -1), lambda s, x: x.flatten(2))
    structure = trace(model, TOKENS, probe=probe)
    assert not structure.groups
    assert "q.weight" in structure.frozen


def test_grouped_queries_go_together() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        q = s.q(x).view(*x.shape[:2], s.heads, s.width).transpose(1, 2)
        k, v = (layer(x).view(*x.shape[:2], s.shared, s.width).transpose(1, 2) for layer in (s.k, s.v))
        k, v = (t[:, :, None].expand(-1, -1, s.heads // s.shared, -1, -1).flatten(1, 2) for t in (k, v))
        return s.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    layers = {"q": nn.Linear(12, 24), "k": nn.Linear(12, 12), "v": nn.Linear(12, 12), "o": nn.Linear(24, 5)}
    structure, small = prove(Sized(forward, **layers, heads=4, shared=2, width=6), TOKENS)
    assert [(g.kind, g.units) for g in structure.groups] == [("kv group", 2)]
    assert (small.heads, small.shared) == (2, 1)


def test_uneven_parts_with_sizes_of_their_own() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        a, b = s.up(x).split([s.first, s.second], -1)
        return s.a(a) + s.b(b) + s.c(s.up(x)[..., : s.first])

    torch.manual_seed(0)
    layers = {"up": nn.Linear(12, 16), "a": nn.Linear(10, 5), "b": nn.Linear(6, 5), "c": nn.Linear(10, 5)}
    structure, small = prove(Sized(forward, **layers, first=10, second=6), TOKENS)
    assert sorted(g.units for g in structure.groups) == [6, 10]
    assert small.first == small.a.weight.shape[1] < 10
    assert small.second == small.b.weight.shape[1] < 6


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.a(s.up(x).split(4, -1)[1]),
        lambda s, x: s.a(s.up(x).narrow(-1, 4, 4)),
        lambda s, x: s.a(s.up(x)[..., 4:8]),
        lambda s, x: s.a(s.up(x).view(*x.shape[:2], 2, 2, 4).sum((2, 3))),
    ],
)
def test_numbers_in_splits_and_slices(forward: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    for probe in (True, False):
        structure = trace(Sized(forward, up=nn.Linear(12, 16), a=nn.Linear(4, 5)), TOKENS, probe=probe)
        touched = [g for g in structure.groups if any(m.param == "a.weight" for m in g.members)]
        assert not touched


def test_sizes_that_are_compared_and_sizes_that_count() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.up(x)
        assert y.shape[-1] == s.inner
        return s.a(y * torch.arange(s.scaled, device=x.device)) + s.b(s.side(x).view(*x.shape[:2], s.scaled))

    torch.manual_seed(0)
    layers = {n: nn.Linear(12, 16) for n in ("up", "side")} | {n: nn.Linear(16, 5) for n in "ab"}
    structure, _ = prove(Sized(forward, **layers, inner=16, scaled=16), TOKENS)
    assert producers(structure) == set()
    assert "arange" in structure.frozen["side.weight"]


def test_attributes_come_back() -> None:
    model = attention(*FOLLOW["tuple"])
    trace(model, TOKENS)
    assert type(model.heads) is int
    assert model.both == (4, 6)
    assert all(type(v) is int for v in model.both)


def test_the_number_of_groups_that_a_module_keeps_is_repaired() -> None:
    class Deep(nn.Module):
        """Channels convolved one by one and normalized in pairs, with numbers of groups under names of their own."""

        def __init__(self) -> None:
            super().__init__()
            self.width, self.pairs = 8, 4
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.kernel, self.scale = nn.Parameter(torch.randn(8, 1, 3, 3)), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.conv2d(self.a(x), self.kernel, groups=self.width)
            out: Tensor = self.b(nn.functional.group_norm(y, self.pairs, self.scale))
            return out

    structure, small = prove(Deep(), torch.randn(2, 3, 6, 6))
    assert [(g.kind, g.units) for g in structure.groups] == [("channel", 4)]
    assert (small.width, small.pairs) == (4, 2)
