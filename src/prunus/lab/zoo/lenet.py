"""Perceptrons on flattened images: LeNet-300-100 and a smaller one.

Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", table I.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.lab.zoo.catalog import scaled


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, on whatever is flattened behind the batch axis."""

    def __init__(self, features: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in pairwise(features[:-1]):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        layers.append(nn.Linear(features[-2], features[-1]))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.layers(x.flatten(1))
        return logits


def lenet300(*, num_classes: int = 10, in_channels: int = 1, size: int = 28, width: float = 1.0) -> Perceptron:
    """LeNet-300-100: `in_channels * size**2` pixels, 300 and 100 hidden units, classes; 266,610 parameters on MNIST."""
    pixels = in_channels * size * size
    return Perceptron((pixels, scaled(300, width), scaled(100, width), num_classes))


def mlp(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    size: int = 8,
    width: float = 1.0,
    hidden: Sequence[int] = (100, 40),
) -> Perceptron:
    """Small perceptron for tests: 64-100-40-10 on 8x8 digits.

    Raises:
        SpecError: `hidden` is empty.
    """
    if not hidden:
        raise SpecError("hidden must name at least one layer, such as (100, 40)")
    return Perceptron((in_channels * size * size, *(scaled(h, width) for h in hidden), num_classes))
