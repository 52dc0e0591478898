"""One linear map with its inputs, and what least squares on the inputs themselves makes of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunus.core.layer import Layer, Update
from prunus.engine.rebuild import chooser


def inputs(samples: int, width: int, seed: int = 0) -> Tensor:
    """Correlated inputs with a mean."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=draw, dtype=torch.float64)
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64) / math.sqrt(width) + torch.eye(width)
    return x @ mix + torch.rand(width, generator=draw, dtype=torch.float64)


def layer_of(x: Tensor, out: int, keep: Tensor | None = None, *, unit: Tensor | None = None, seed: int = 1) -> Layer:
    draw = torch.Generator().manual_seed(seed)
    width = x.shape[1]
    w = torch.randn(out, width, generator=draw, dtype=torch.float64)
    if keep is None:
        keep = torch.rand(out, width, generator=draw) > 0.5
    if unit is None:
        unit = torch.full((width,), -1)
    bias = torch.randn(out, generator=draw, dtype=torch.float64)
    return Layer("fc.weight", w, bias, keep, x.T @ x / len(x), x.mean(0), len(x), unit)


def units_layer(x: Tensor, out: int, each: int, left: list[int], seed: int = 1) -> Layer:
    """Units of `each` consecutive columns; those in `left` stay."""
    unit = torch.arange(x.shape[1]) // each
    keep = torch.isin(unit, torch.tensor(left)).expand(out, -1).clone()
    return layer_of(x, out, keep, unit=unit, seed=seed)


def lost(layer: Layer, w: Tensor, x: Tensor) -> float:
    return float((x @ (w - layer.w).T).square().sum() / len(x))


def fitted(layer: Layer, keep: Tensor, x: Tensor) -> Tensor:
    """Row by row, the least squares fit of the layer's outputs by the inputs that are kept."""
    w = torch.zeros_like(layer.w)
    for row, target in enumerate((x @ layer.w.T).T):
        s = keep[row].nonzero().squeeze(1)
        w[row, s] = torch.linalg.lstsq(x[:, s], target.unsqueeze(1)).solution.squeeze(1)
    return w


def run(part: object, layer: Layer) -> Update:
    return part(layer, chooser(layer))  # type: ignore[operator]
