"""What a sparse network can use: weights that lie on a path from input to output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

import prunus
from prunus.core.task import Task


@dataclass(frozen=True)
class Reached:
    """A weight tensor of a network.

    Attributes:
        name: of the parameter.
        weights: entries; `kept` of them are not zero, `reached` lie on a path as well.
    """

    name: str
    weights: int
    kept: int
    reached: int


def effective_densities(model: nn.Module, example: tuple[Any, ...]) -> tuple[Reached, ...]:
    """Weights that are not zero, and those of them on a path from input to output, tensor by tensor (effective
    sparsity: Vysogorets & Kempe 2023, JMLR, arXiv:2107.02306, section 3).

    A weight is on a path where the sum over all paths of the products of absolute weights through it is not zero: that
    is synaptic flow (Tanaka et al. 2020, arXiv:2006.05467), in float64. Biases and what normalizations add begin paths
    too: what they feed passes a constant on.

    Cost: a forward and a backward of one input, a copy of the model in float64.
    Errors: `PrunusError` where flow is not defined on the network, or overflows.
    """
    flow = prunus.score(model, Task(example=example), "synflow")
    parameters = dict(model.named_parameters())
    return tuple(
        Reached(n, f.numel(), int((parameters[n] != 0).sum()), int(((f > 0) & (parameters[n] != 0)).sum()))
        for n, f in flow.items()
    )
