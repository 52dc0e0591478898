"""Bad input gets a sentence that says what, where, why and what to do, before anything is changed."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Budget, Task
from prunus.core.errors import BudgetError, DataError, SpecError, StructureError, UnknownNameError, WeightsError
from tests.contract.models import CASES

CNN = CASES["cnn"]


@pytest.fixture(autouse=True)
def _no_type_checker() -> Iterator[None]:
    """Users have none: a value of the wrong type has to be met by our own sentence, not by the checker of the tests."""
    was = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was)


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(t, before[n]) or (t.isnan() == before[n].isnan()).all() for n, t in model.state_dict().items()
    )


def refused(error: type[Exception], *words: str, model: nn.Module | None = None, **arguments: Any) -> str:
    """Prune in place, through a session, so that a change would show; every word has to be in the message."""
    model = model or CNN.model()
    before = copy.deepcopy(model.state_dict())
    task = arguments.pop("task", CNN.task())
    recipe = arguments.pop("recipe", "magnitude")
    with pytest.raises(error) as caught:
        prunus.Session(model, recipe, task, **arguments).start()
    assert unchanged(model, before)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def test_an_unknown_method_comes_with_the_nearest_names() -> None:
    refused(UnknownNameError, "unknown method 'magnitud'", "did you mean magnitude", recipe="magnitud", sparsity=0.5)
    refused(UnknownNameError, "snip", recipe="SNIPP".lower(), sparsity=0.5)
    refused(UnknownNameError, "known: ", "synflow", recipe="qqqqqq", sparsity=0.5)
    with pytest.raises(AttributeError, match="did you mean rigl"):
        prunus.methods.rigel  # noqa: B018
    refused(SpecError, "a Recipe or the name of one", "int", recipe=3, sparsity=0.5)


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, float("nan"), float("inf"), True, "0.5", None, 90])
def test_a_sparsity_outside_zero_to_one_is_refused(sparsity: Any) -> None:
    words = ("sparsity=0.9", "Budget(") if sparsity is None else (f"sparsity={sparsity!r}", "[0, 1)", "Budget(density")
    refused(SpecError, *words, sparsity=sparsity)


@pytest.mark.parametrize("field", ["density", "params", "macs"])
@pytest.mark.parametrize("value", [0.0, 1.1, -1, float("nan"), float("inf"), True, "half"])
def test_a_budget_outside_zero_to_one_is_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=re.escape(f"budget {field}={value!r} is outside (0, 1]")):
        Budget(**{field: value})


def test_a_budget_names_exactly_one_currency() -> None:
    with pytest.raises(SpecError, match="exactly one of density, params, macs"):
        Budget()
    with pytest.raises(SpecError, match="exactly one of density, params, macs"):
        Budget(0.5, macs=0.5)
    refused(SpecError, "not both", sparsity=0.5, budget=Budget(0.5))
    refused(SpecError, "budget must be a prunus.Budget", "0.5", budget=0.5)


def test_nan_weights_are_all_named_at_once() -> None:
    model = CNN.model()
    with torch.no_grad():
        model.stem.weight[0, 0, 0, :2] = torch.nan
        model.head.weight[1, 1] = torch.inf
    message = refused(
        WeightsError, "'stem.weight' holds 2", "'head.weight' holds 1", "repair", model=model, sparsity=0.5
    )
    assert "2 problems" in message and "conv1" not in message


def test_weights_whose_sum_overflows_are_no_nan() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).half()
    with torch.no_grad():
        model[0].weight.fill_(60000.0)
    assert prunus.prune(model, recipe="magnitude", sparsity=0.5).masks["0.weight"].sum() == 12  # ties: the earlier


def test_nan_scores_are_named_with_the_group() -> None:
    batches = CNN.batches(1)
    batches[0][0][0] = torch.nan
    message = refused(WeightsError, "ConnectionSensitivity gives NaN", "batches", recipe="snip", sparsity=0.5,
                      task=CNN.task(calib=batches))  # fmt: skip
    assert "weight'" in message


def test_a_batch_of_the_wrong_shape_is_shown_with_its_shapes() -> None:
    batch = (torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.zeros(6, dtype=torch.long))
    refused(DataError, "(6, 3, 8, 8) float64", "(6,) int64", "expected input", recipe="snip", sparsity=0.5,
            task=CNN.task(calib=[batch]))  # fmt: skip


def test_an_example_of_the_wrong_shape_is_a_data_error() -> None:
    example = (torch.randn(6, 3, 8, 8, dtype=torch.float64),)
    refused(DataError, "3, 8, 8", recipe="l1_filter", sparsity=0.5, task=Task(example=example))


@pytest.mark.parametrize("loss", [lambda m, b: m(b[0]), lambda m, b: 0.5, lambda m, b: None])
def test_a_loss_that_is_no_scalar_is_refused(loss: Any) -> None:
    refused(SpecError, "Task.loss must return a scalar tensor", recipe="snip", sparsity=0.5, task=CNN.task(loss=loss))


def test_everything_that_a_task_lacks_is_said_at_once() -> None:
    message = refused(SpecError, "'snip'", "Task(loss=", "Task(calib=", recipe="snip", sparsity=0.5, task=Task())
    assert "2 problems" in message


def test_empty_data_is_an_error() -> None:
    refused(DataError, "no batch", "Task(calib=", recipe="snip", sparsity=0.5, task=CNN.task(calib=[]))
    refused(DataError, "Task.train yields no batch", recipe="snip", sparsity=0.5, task=CNN.task(calib=None, train=[]))


@pytest.mark.parametrize("steps", [-1, 1.5, "ten", True])
def test_steps_are_whole_numbers(steps: Any) -> None:
    refused(SpecError, f"steps={steps!r}", "0 or more", sparsity=0.5, steps=steps)


@pytest.mark.parametrize("seed", [1.5, "x", None])
def test_seeds_are_whole_numbers(seed: Any) -> None:
    refused(SpecError, f"seed={seed!r}", sparsity=0.5, seed=seed)


def test_training_needs_a_loss_and_batches() -> None:
    for lacks in ("loss", "train"):
        with pytest.raises(SpecError, match=r"steps=3 trains: pass Task\(loss=.*train="):
            prunus.prune(CNN.model(), CNN.task(**{lacks: None}), "magnitude", sparsity=0.5, steps=3)


def test_a_generator_that_runs_dry_is_explained() -> None:
    task = CNN.task(train=iter(CNN.batches(2)))
    with pytest.raises(DataError, match=r"ran out of batches.*a list, a DataLoader"):
        prunus.prune(CNN.model(), task, "magnitude", sparsity=0.5, steps=5)


def test_a_loss_that_becomes_infinite_stops_the_run() -> None:
    def explode(model: nn.Module, batch: Any) -> Tensor:
        return CNN.loss(model, batch) * torch.inf

    with pytest.raises(DataError, match=r"loss became .* at step 0: lower the learning rate"):
        prunus.prune(CNN.model(), CNN.task(loss=explode), "magnitude", sparsity=0.5, steps=5)


def test_the_wrong_optimizer_is_named() -> None:
    model, other = CNN.model(), CNN.model()
    session = prunus.Session(model, "magnitude", sparsity=0.5)
    with pytest.raises(SpecError, match="another copy of the model"):
        session.attach(torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(SpecError, match="list"):
        session.attach([])
    with pytest.raises(SpecError, match=r"Adam|str"):
        session.attach("adam")
    with pytest.raises(SpecError, match="parameters that are not the model's"):
        prunus.prune(model, CNN.task(), "magnitude", sparsity=0.5, steps=2,
                     optimizer=torch.optim.SGD(other.parameters(), lr=0.1))  # fmt: skip
    with pytest.raises(SpecError, match=r"made NoneType|it made"):
        prunus.prune(model, CNN.task(), "magnitude", sparsity=0.5, steps=2, optimizer=lambda parameters: None)
    session.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(SpecError, match="attached already"):
        session.attach(torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_model_without_weights_to_prune_is_refused() -> None:
    refused(StructureError, "Element finds nothing to prune", "Sequential", "it has no such weights",
            model=nn.Sequential(nn.LayerNorm(4), nn.ReLU()), sparsity=0.5)  # fmt: skip
    alone = nn.Sequential(nn.Linear(4, 2)).double()
    refused(StructureError, "Channel finds nothing to prune", "an output of the model (0.weight)", model=alone,
            recipe="l1_filter", sparsity=0.5,
            task=Task(example=(torch.randn(2, 4, dtype=torch.float64),)))  # fmt: skip


def test_a_pattern_that_fits_no_layer_is_refused_and_one_that_fits_some_lists_the_others() -> None:
    refused(SpecError, "fits no layer", recipe="n_of_m", model=nn.Sequential(nn.Linear(5, 3)))
    both = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    result = prunus.prune(both, recipe="n_of_m")
    assert set(result.masks) == {"0.weight"} and "blocks of" in result.skipped["1.weight"]
    assert result.sparsity == 0.5 and result.weight_sparsity == pytest.approx(
        24 / sum(p.numel() for p in both.parameters())
    )


def test_a_pattern_has_one_density() -> None:
    refused(BudgetError, "2:4 keeps exactly 0.5", "sparsity=0.5", recipe="n_of_m", sparsity=0.9)


def test_a_model_that_is_no_module_is_refused() -> None:
    with pytest.raises(SpecError, match=r"nn\.Module, got (function|str|dict|type)"):
        prunus.prune({"weight": torch.ones(2)}, recipe="magnitude", sparsity=0.5)  # type: ignore[arg-type]


def test_a_task_that_is_no_task_is_refused() -> None:
    with pytest.raises(SpecError, match=r"prunus\.Task, got a list"):
        prunus.Session(CNN.model(), "magnitude", CNN.batches(1), sparsity=0.5)  # type: ignore[arg-type]
