"""A budget that comes to nothing is said, not passed over."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from prunus import Task, methods, prune
from prunus.core.errors import PrunusWarning
from prunus.parts.granularity import Channel


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize(("sparsity", "said"), [(0.3, True), (0.4, False), (0.0, False)])
def test_groups_too_small_for_the_budget(sparsity: float, said: bool) -> None:
    recipe = replace(methods.get("l1_filter"), granularity=Channel())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = prune(net(), Task(example=torch.randn(2, 4)), recipe, sparsity=sparsity)
    told = [str(w.message) for w in seen if issubclass(w.category, PrunusWarning)]
    assert any("nothing was pruned: 0.7 was to be kept" in t for t in told) == said
    assert (result.sparsity > 0) == (sparsity == 0.4)
