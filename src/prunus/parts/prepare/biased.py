"""Biases for what reads prunable units, so that what goes can be made up for there."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.core.errors import SpecError
from prunus.core.part import Preparation
from prunus.graph.structure import trace


@dataclass(frozen=True)
class Biased(Preparation):
    """Linear maps that read heads and neurons get a bias of zeros where they have none (FLAP: An et al. 2024,
    arXiv:2312.11983, section 3.3): for `BiasCompensation`, in models whose layers have no biases.

    Outputs stay the same, exactly. Readers of a residual stream alone stay without. Only maps are taken whose module
    keeps its bias as a parameter that is None. Cost: a trace. Fails: `SpecError` without an example; nothing was
    changed.
    """

    def __call__(self, model: nn.Module, example: Any = None, task: Any = None) -> nn.Module:
        if example is None:
            raise SpecError("what reads heads and neurons is found by a run: pass Task(example=...) or batches")
        groups = [g for g in trace(model, example).groups if g.kind != "width"]
        readers = {m.param.rpartition(".") for g in groups for m in g.with_role("in")}
        return self.again(model, {f"{path}.bias" for path, _, name in readers if name == "weight"})

    def again(self, model: nn.Module, names: Collection[str]) -> nn.Module:
        """Biases for those maps whose bias is among `names`."""
        for path, module in model.named_modules():
            weight = module._parameters.get("weight")
            if f"{path}.bias" in names and weight is not None and module._parameters.get("bias", weight) is None:
                add_bias_(module, weight)
        return model


def add_bias_(module: nn.Module, weight: nn.Parameter) -> nn.Parameter:
    """A bias of zeros for a linear map `[out, in]` that has none."""
    bias = nn.Parameter(torch.zeros(len(weight), device=weight.device, dtype=weight.dtype), weight.requires_grad)
    module._parameters["bias"] = bias
    return bias
