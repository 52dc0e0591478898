"""Budgets in parameters and MACs are met from below, to within one unit, and refused with the best reachable."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus import Budget, Task
from prunus.core.errors import BudgetError, SpecError
from prunus.parts.allocation import Uniform
from prunus.parts.granularity import Channel, Element
from tests.contract.models import CASES

CNN = CASES["cnn"]


def parameters_left(result: prunus.Result) -> int:
    return sum(p.numel() for p in result.compact().parameters())


def macs(model: nn.Module) -> int:
    """Multiply-accumulates of one image, counted at every layer that has weights."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * (output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1)

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_hook(count) for m in layers]
    model.eval()(CNN.batches(1)[0][0][:1])
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
@pytest.mark.parametrize("name", ["l1_filter", "taylor_fo", "random"])
@pytest.mark.parametrize("currency", ["params", "macs"])
def test_a_structured_budget_is_met_from_below_and_one_more_unit_would_break_it(
    name: str, currency: str, share: float
) -> None:
    recipe = replace(prunus.methods.get(name), granularity=Channel(), schedule=prunus.methods.snip.schedule)
    dense = CNN.model()
    whole = macs(dense) if currency == "macs" else sum(p.numel() for p in dense.parameters())

    def left(result: prunus.Result) -> int:
        return macs(result.compact()) if currency == "macs" else parameters_left(result)

    result = prunus.prune(dense, CNN.task(), recipe, budget=Budget(**{currency: share}))
    assert left(result) <= share * whole
    units = sum(m.numel() for m in result.unit_masks.values())
    kept = sum(int(m.sum()) for m in result.unit_masks.values())
    # The next larger masks of the same ranking are over the ceiling.
    for more in range(kept + 1, units + 1):
        larger = prunus.prune(dense, CNN.task(), recipe, budget=Budget(density=more / units))
        if sum(int(m.sum()) for m in larger.unit_masks.values()) > kept:
            assert left(larger) > share * whole
            break


def test_an_unstructured_budget_in_params_counts_all_parameters_of_the_model() -> None:
    model = CNN.model()
    total = sum(p.numel() for p in model.parameters())
    result = prunus.prune(model, CNN.task(), "magnitude", budget=Budget(params=0.5))
    nonzero = sum(int((p != 0).sum()) for p in result.model.parameters())
    assert nonzero == int(0.5 * total)
    assert result.to_dict()["params_kept"] == nonzero


@pytest.mark.parametrize(("budget", "word"), [(Budget(params=0.01), "params"), (Budget(macs=0.001), "macs")])
def test_a_budget_out_of_reach_names_the_best_reachable(budget: Budget, word: str) -> None:
    model = CNN.model()
    with pytest.raises(BudgetError) as caught:
        prunus.prune(model, CNN.task(), "l1_filter", budget=budget)
    found = re.search(r"with every group at its minimum ([\d.e-]+) is left", str(caught.value))
    assert found and word in str(caught.value) and "exclude, at_least, granularity" in str(caught.value)
    least = float(found.group(1))
    close = Budget(**{word: min(1.0, least * 1.001)})
    result = prunus.prune(model, CNN.task(), "l1_filter", budget=close)  # what it names can be reached
    assert all(int(m.sum()) == 1 for m in result.unit_masks.values())
    with pytest.raises(BudgetError):
        prunus.prune(model, CNN.task(), "l1_filter", budget=Budget(**{word: least * 0.99}))


def test_a_pattern_cannot_meet_a_budget_in_another_currency() -> None:
    with pytest.raises(BudgetError, match="one density of its own"):
        prunus.prune(CNN.model(), CNN.task(), "n_of_m", budget=Budget(params=0.3))


def test_macs_need_an_example() -> None:
    with pytest.raises(SpecError, match=r"Task\(example="):
        prunus.prune(CNN.model(), Task(), "magnitude", budget=Budget(macs=0.5))


def test_at_least_and_round_to_are_respected() -> None:
    recipe = replace(prunus.methods.l1_filter, granularity=Channel(at_least=3))
    result = prunus.prune(CNN.model(), CNN.task(), recipe, sparsity=0.95)
    assert all(int(m.sum()) == 3 for m in result.unit_masks.values())
    recipe = replace(prunus.methods.l1_filter, granularity=Channel(round_to=4))
    result = prunus.prune(CNN.model(), CNN.task(), recipe, sparsity=0.4)
    assert all(int(m.sum()) % 4 == 0 and m.any() for m in result.unit_masks.values())


def test_exclude_leaves_layers_whole() -> None:
    recipe = replace(prunus.methods.magnitude, granularity=Element(exclude=("stem*", "*.head", "head.weight")))
    result = prunus.prune(CNN.model(), CNN.task(), recipe, sparsity=0.9)
    assert "stem.weight" not in result.masks and "head.weight" not in result.masks
    recipe = replace(prunus.methods.l1_filter, granularity=Channel(exclude=("body.1*",)))
    result = prunus.prune(CNN.model(), CNN.task(), recipe, sparsity=0.5)
    assert not any(n.startswith(("body.1.conv1", "body.1.conv2")) for n in result.unit_masks)


@pytest.mark.parametrize(("units", "sparsity"), list(itertools.product([7, 10, 100, 1001], [0.1, 0.3, 0.9, 0.995])))
def test_floats_do_not_lose_a_unit(units: int, sparsity: float) -> None:
    """0.9 of 10 is 9: the count is that of the decimal that was written."""
    model = nn.Sequential(nn.Linear(units, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    recipe = replace(prunus.methods.magnitude, allocate=Uniform(within="row"))
    result = prunus.prune(model, recipe=recipe, sparsity=sparsity)
    removed = round(sparsity * 1000) * units // 1000
    assert (result.masks["0.weight"].sum(1) == units - removed).all()
