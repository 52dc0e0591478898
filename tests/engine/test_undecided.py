"""Where a reconstruction chooses by itself what stays, masks only say how many: no score, and the same result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus import Recipe, Task
from prunus.core.part import Allocation
from prunus.engine import carry, sweep
from prunus.parts.allocation import GlobalRanking, NofM, Uniform
from prunus.parts.criteria import ObsSaliency


def network() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8))


def task() -> Task:
    generator = torch.Generator().manual_seed(1)
    return Task(calib=[torch.randn(40, 2, 4, 4, generator=generator) for _ in range(2)])


def pruned(recipe: Recipe, model: nn.Module) -> tuple[dict[str, Any], Any]:
    pattern = recipe.allocate.pattern
    result = prunus.prune(model, task(), recipe, sparsity=None if pattern else 0.5)
    return result.model.state_dict(), result


@pytest.mark.parametrize("allocate", [Uniform(), Uniform(within="row"), NofM(2, 4)], ids=str)
@pytest.mark.parametrize("how", ["sweep", "model", "obc"])
def test_what_is_chosen_anew_is_not_scored(allocate: Allocation, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = prunus.methods.get("obc" if how == "obc" else "sparsegpt")
    recipe = replace(method, allocate=allocate, sweep="blocks" if how == "sweep" else "model")
    calls: list[int] = []
    own = ObsSaliency.__call__
    monkeypatch.setattr(ObsSaliency, "__call__", lambda *a, **k: calls.append(1) or own(*a, **k))
    found, result = pruned(recipe, network())
    assert not calls
    for module in (carry, sweep):
        monkeypatch.setattr(module, "rebuilt_anew", lambda *_: None)
    scored, other = pruned(recipe, network())
    assert calls
    assert all(torch.equal(found[n], scored[n]) for n in scored)
    assert all(torch.equal(result.unit_masks[n], other.unit_masks[n]) for n in other.unit_masks)
    assert result.skipped == other.skipped


def test_where_scores_decide_how_many_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    own = ObsSaliency.__call__
    monkeypatch.setattr(ObsSaliency, "__call__", lambda *a, **k: calls.append(1) or own(*a, **k))
    across = replace(prunus.methods.get("sparsegpt"), allocate=GlobalRanking(), sweep="model")
    pruned(across, network())
    assert calls  # layers compete
    grouped = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(64, 8))
    calls.clear()
    pruned(replace(prunus.methods.get("sparsegpt"), sweep="model"), grouped)
    assert calls  # as many stay in each group of the convolution as its scores say
