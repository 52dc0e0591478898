"""Gradient flow: how much the loss falls along its gradient, and what the layers have of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.core.task import Task
from prunus.measure.derivatives import Masks, derivable, gradient, kept_entries, trained


@dataclass(frozen=True)
class GradientFlow:
    """The squared norm of the gradient of the mean loss.

    Attributes:
        flow: over the parameters that may move: the rate at which the loss falls in continuous gradient descent.
        whole: over all parameters, pruned ones too; what regrowth could use.
        loss: where it was taken.
        parameters: entries that may move.
        layers: parameter -> its part of `flow`.
    """

    flow: float
    whole: float
    loss: float
    parameters: int
    layers: Mapping[str, float]


def gradient_flow(model: nn.Module, task: Task, batches: Sequence[Any], *, kept: Masks | None = None) -> GradientFlow:
    """|g|^2 of the gradient g of the mean loss over batches, in evaluation mode (Evci et al. 2022, AAAI,
    arXiv:2010.03533, section 3: the loss falls by the step size times it, to first order).

    Args:
        kept: parameter -> True where it may move. Gradients of pruned weights are not followed, so they do not count.

    Cost: a forward and a backward per batch.
    Errors: `SpecError` for masks that fit no parameter, `DataError` for no batch or a loss that is not finite.
    Differs: the paper's networks are in training mode, where batch normalization takes the batch's statistics.
    """
    with derivable(model):
        parameters = trained(model)
        where = kept_entries(parameters, kept)
        loss, grads = gradient(model, task, batches, parameters)
    masks = where.split([p.numel() for p in parameters.values()])
    squares = [g.double().flatten().square() for g in grads]
    layers = {n: float(s[m].sum()) for n, s, m in zip(parameters, squares, masks, strict=True)}
    return GradientFlow(
        flow=sum(layers.values()),
        whole=float(torch.stack([s.sum() for s in squares]).sum()),
        loss=loss,
        parameters=int(where.sum()),
        layers=layers,
    )
