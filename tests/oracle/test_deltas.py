"""DPPA: densities as its official code deals them out, deltas, and factors found by trying."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import SpecError
from prunus.engine.deltas import amplified, difference, merged


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.o, self.up, self.down = (nn.Linear(b, a) for a, b in ((16, 16), (16, 16), (32, 16), (16, 32)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o(self.q(x).relu())
        return x + self.down(self.up(x).relu())  # type: ignore[no-any-return]


class Net(nn.Module):
    """Blocks of several linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.table = nn.Embedding(4, 16)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def pair() -> tuple[Net, Net]:
    """A base, and a model that was tuned from it."""
    torch.manual_seed(0)
    base, tuned = Net().double(), Net().double()
    with torch.no_grad():
        for i, (p, q) in enumerate(zip(tuned.parameters(), base.parameters(), strict=True)):
            tail = (torch.randn_like(p) * (0.3 + 0.11 * (i % 7))).exp() if p.ndim == 2 else 1.0
            p.copy_(q + 0.02 * torch.randn_like(p) * tail)
    return base, tuned


def published(weights: dict[str, Tensor], blocks: dict[str, int], density: float, spread: float) -> dict[str, float]:
    """The densities of `prune_mag_outlier_layer_wei`, transcribed: blocks by 3 times their mean, layers by 5 times."""
    count = 1 + max(blocks.values())
    together = [torch.cat([w.abs().flatten() for n, w in weights.items() if blocks[n] == i]) for i in range(count)]
    by_block = np.array([float((w / w.mean() > 3).sum()) / w.numel() * 100 for w in together])
    by_block -= by_block.mean()
    by_block = by_block * spread / np.abs(by_block).max() + density
    own = np.array([float((w.abs() > 5 * w.abs().mean()).sum()) / w.numel() * 100 for w in weights.values()])
    size = np.array([w.numel() for w in weights.values()])
    own /= own.mean()
    own -= (own * size).sum() / size.sum()
    own *= spread / np.abs(own).max()
    return {n: float(o + by_block[blocks[n]]) for o, n in zip(own, weights, strict=True)}


@pytest.mark.parametrize("sparsity", [0.8, 0.7, 0.5])
def test_as_published(pair: tuple[Net, Net], sparsity: float) -> None:
    base, tuned = pair
    delta = difference(tuned, base)
    recipe = methods.get("dppa")
    units: Any = recipe.granularity
    recipe = replace(recipe, granularity=replace(units, exclude=("table*",)))
    found = prunus.prune(delta, Task(example=torch.randn(2, 16).double()), recipe, sparsity=sparsity)
    weights = {n: p.detach() for n, p in delta.named_parameters() if n in found.masks}
    assert len(weights) == 12
    blocks = {n: int(n.split(".")[1]) for n in weights}
    wanted = published(weights, blocks, 1 - sparsity, 0.08)
    assert all(0 < d < 1 for d in wanted.values()) and len({round(d, 4) for d in wanted.values()}) > 6
    kept = {n: int(found.masks[n].sum()) for n in weights}
    for name, weight in weights.items():
        assert kept[name] == pytest.approx(wanted[name] * weight.numel(), abs=1.01), name
        largest = weight.abs().flatten().topk(kept[name]).indices.sort().values
        assert torch.equal(found.masks[name].flatten().nonzero().squeeze(1), largest)
    assert sum(kept.values()) == pytest.approx((1 - sparsity) * sum(w.numel() for w in weights.values()), abs=12)


def test_deltas_are_added_and_taken_away(pair: tuple[Net, Net]) -> None:
    base, tuned = pair
    delta = difference(tuned, base)
    again = merged(base, delta)
    assert all(
        torch.allclose(a, b) for a, b in zip(again.state_dict().values(), tuned.state_dict().values(), strict=True)
    )
    half = merged(base, delta, delta, weights=(0.25, 0.25)).state_dict()
    for name, value in half.items():
        other = base.state_dict()[name]
        assert (
            torch.allclose(value, (other + tuned.state_dict()[name]) / 2) if value.is_floating_point() else value == 3
        )
    with pytest.raises(SpecError, match="1 weights for 2 deltas"):
        merged(base, delta, delta, weights=(1.0,))
    other = Net().double()
    other.table = nn.Embedding(5, 16).double()
    del other.layers[2].down
    with pytest.raises(SpecError, match=r"only one of them has layers\.2\.down\.bias") as told:
        difference(other, base)
    assert "table.weight is (5, 16) and (4, 16)" in str(told.value)


def test_factors_are_found_partition_by_partition(pair: tuple[Net, Net]) -> None:
    base, tuned = pair
    delta = difference(tuned, base)
    few, more = (prunus.prune(delta, None, "dppa", sparsity=s).model for s in (0.7, 0.5))
    name = "layers.0.q.weight"
    d, a, b = (m.get_parameter(name).detach() for m in (delta, few, more))
    assert bool(((b != 0) | (a == 0)).all())  # the partitions are nested
    tried: list[tuple[float, float]] = []

    def score(made: nn.Module) -> float:
        """Best at 1.4 for the largest, and 0 or 1.2 for the next ones."""
        w = made.get_parameter(name).detach()
        first = float((w[a != 0] / d[a != 0]).mean())
        rest = (b != 0) & (a == 0)
        second = float((w[rest] / d[rest]).mean())
        tried.append((round(first, 6), round(second, 6)))
        return -abs(first - 1.4) - abs(second - best)

    best = 1.2
    made, factors = amplified([few, more], score)
    assert factors == (1.4, 1.2)
    assert tried == [
        (1.0, 0),
        (1.1, 0),
        (1.2, 0),
        (1.3, 0),
        (1.4, 0),
        (1.5, 0),
        (1.4, 1.0),
        (1.4, 1.1),
        (1.4, 1.2),
        (1.4, 1.3),
    ]
    w = made.get_parameter(name).detach()
    assert torch.allclose(w, torch.where(a != 0, 1.4 * d, torch.where(b != 0, 1.2 * d, torch.zeros_like(d))))
    best = 0.0
    assert amplified([few, more], score)[1] == (1.4, 0.0)
    assert amplified([few], lambda _: float(len(tried)), most=2.0, step=0.5)[1] == (1.0,)
    with pytest.raises(SpecError, match="one delta or more"):
        amplified([], score)
