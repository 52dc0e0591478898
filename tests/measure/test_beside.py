"""What lies between layers: each operation is booked on the layer that it follows; and the fit of what was measured."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.lab import zoo
from prunus.measure.beside import beside
from prunus.measure.layers import layers
from prunus.measure.prices import within


class Branches(nn.Module):
    """Much work on the output of one layer, of four."""

    def __init__(self, heavy: int) -> None:
        super().__init__()
        self.heavy, self.odd = heavy, False
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def work(self, x: Tensor, at: int) -> Tensor:
        for _ in range(60 if at == self.heavy else 0):
            x = x.sin()
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.work(self.stem(x), 0)
        x = self.work(self.left(x).relu_(), 1) + self.work(self.right(x), 2)
        if self.odd and not x.is_meta:
            x = nn.functional.conv2d(x, self.right.weight)
        return self.work(self.head(x.mean((2, 3))), 3)


@pytest.mark.parametrize("heavy", [0, 1, 2])
def test_work_is_booked_on_the_layer_that_it_follows(heavy: int) -> None:
    model, x = Branches(heavy).eval(), torch.randn(2, 3, 32, 32)
    found = beside(model, x, layers(model, x), threads=1)
    assert len(found) == 4 and min(found) >= 0.0
    assert all(found[heavy] > 3 * found[other] for other in {0, 1, 2} - {heavy})


def test_a_run_that_is_another_one_tells_nothing() -> None:
    model, x = Branches(0).eval(), torch.randn(2, 3, 8, 8)
    seen = layers(model, x)
    model.odd = True
    assert beside(model, x, seen) == () and beside(model, x, ()) == ()


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vit_tiny_cifar", "gpt_tiny"])
def test_layers_are_recognised_in_every_kind_of_network(name: str) -> None:
    model, example = zoo.build(name).eval(), zoo.example_inputs(name, batch=1)
    training = [m.training for m in model.modules()]
    seen = layers(model, example)
    assert len(beside(model, example, seen)) == len(seen) > 3
    assert [m.training for m in model.modules()] == training


@pytest.mark.parametrize("seed", range(12))
def test_the_fit_is_the_least_squares_in_its_bounds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, wanted = generator.normal(size=(4, 2)), generator.normal(size=4)
    u, v = within(rows, wanted)
    assert u >= -1e-12 and v >= -1e-12 and u + v <= 1 + 1e-12
    steps = np.linspace(0, 1, 101)
    grid = [np.array(p) for p in product(steps, steps) if sum(p) <= 1 + 1e-9]
    least = min(float(((rows @ p - wanted) ** 2).sum()) for p in grid)
    assert float(((rows @ np.array([u, v]) - wanted) ** 2).sum()) <= least + 1e-12
