"""Models and inputs of fake tensors: traced as meta tensors, of which nothing but shapes is known either."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from prunus.core.task import Example
from prunus.graph.running import mapped


def is_fake(model: nn.Module) -> bool:
    """Whether any parameter or buffer is a fake tensor."""
    return any(isinstance(t, FakeTensor) for t in (*model.parameters(), *model.buffers()))


def on_meta(model: nn.Module, example: Example | Tensor, run: Callable[[nn.Module, Example | Tensor], Any]) -> Any:
    """`run` on a copy of a fake model on the meta device, outside of any fake mode."""
    with unset_fake_temporarily():
        memo: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            bare = _bare(tensor)
            memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
        return run(copy.deepcopy(model, memo), mapped(example, _bare))


def _bare(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")
