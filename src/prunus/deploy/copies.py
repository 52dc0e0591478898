"""A model as it is deployed: a copy in evaluation mode whose weights are what they compute."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from prunus.deploy.denormals import flush_denormals_
from prunus.graph.duplicate import duplicate
from prunus.graph.running import unwrap


def deployed_copy(model: nn.Module) -> tuple[nn.Module, dict[str, int]]:
    """A copy in evaluation mode; parametrized weights (weight or spectral norm) are plain ones, denormals are zeros.

    Args:
        model: not changed.

    Returns: the copy, and how many denormal numbers of which tensor became zeros.
    Cost: a copy of the weights.
    """
    inner = unwrap(model)
    own = duplicate(inner)
    for module in own.modules():
        module.training = False  # flag by flag: some models merge weights in `train()`
    for module in list(own.modules()):
        if parametrize.is_parametrized(module):
            _settle_(module)
    return own, flush_denormals_(own)


def _settle_(module: nn.Module) -> None:
    """Put what parametrizations compute in their place.

    PyTorch's own `remove_parametrizations` takes properties off a class that a copy shares with its original.
    """
    parts = module._modules.pop("parametrizations")
    assert isinstance(parts, nn.ModuleDict)
    with torch.no_grad():
        values = {name: part().detach().clone() for name, part in parts.items()}
    module.__class__ = parametrize.type_before_parametrizations(module)
    for name, value in values.items():
        if any(True for _ in parts[name].parameters()):
            module.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))
        else:
            module.register_buffer(name, value)
