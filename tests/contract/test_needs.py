"""What a recipe says it reads is all it reads: everything else is poisoned, and the masks do not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core.errors import DataError, SpecError
from tests.contract.models import CASES
from tests.contract.runs import NAMES, NO_STRUCTURE, PAIRS, one_shot, pruned, quiet, recipe, same

FREE = [(r, m) for r, m in PAIRS if prunus.methods.get(r).reads == "nothing"]
TOLD = [(r, m) for r, m in PAIRS if prunus.methods.get(r).reads == "labels"]


class Forbidden:
    """Batches that nobody may look at."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("this recipe read data that it does not declare")


def forbidden_loss(model: nn.Module, batch: Any) -> Tensor:
    raise AssertionError("this recipe asked for a loss that it does not declare")


def forbidden_metric(model: nn.Module) -> float:
    raise AssertionError("the metric is for reports, never for choosing")


def needs_example(name: str) -> bool:
    """Channels are found by running the model; synaptic flow needs the shape of an input. Nothing else needs one."""
    found = prunus.methods.get(name)
    run = {
        "NoiseGradEvidence",
        "KernelGradEvidence",
        "PathFlowEvidence",
        "SynapticFlowEvidence",
        "FeedingScaleEvidence",
    }
    run |= {"UnitCostEvidence", "CountCostEvidence"}
    asked = [*found.criterion.asks().values(), *found.allocate.asks().values()]
    return found.structure == "structured" or any(type(e).__name__ in run for e in asked)


@pytest.mark.parametrize(("name", "network"), [p for p in FREE if p[1] in ("cnn", "decoder")])
def test_a_data_free_recipe_gets_no_data_at_all(name: str, network: str) -> None:
    case = CASES[network]
    task = prunus.Task(example=(case.batches(1)[0][0],)) if needs_example(name) else prunus.Task()
    result = pruned(recipe(name), case, task)
    assert same(result.masks, one_shot(name, network).masks)


@pytest.mark.parametrize(("name", "network"), FREE)
def test_poisoned_data_changes_nothing_for_a_data_free_recipe(name: str, network: str) -> None:
    """The example's values are none of its business either: only the shape is."""
    case = CASES[network]
    inputs = case.batches(1, seed=99)[0][0]
    example = torch.full_like(inputs, 10.0**6) if inputs.is_floating_point() else torch.zeros_like(inputs)
    task = prunus.Task(
        loss=forbidden_loss, train=Forbidden(), calib=Forbidden(), metric=forbidden_metric, example=(example,)
    )
    # Token ids that are all alike are the one exception: synaptic flow runs through the embedding rows of the example.
    if not inputs.is_floating_point():
        task = prunus.Task(**(vars(task) | {"example": (case.batches(1)[0][0],)}))
    assert same(pruned(recipe(name), case, task).masks, one_shot(name, network).masks)


@pytest.mark.parametrize(("name", "network"), TOLD)
def test_a_recipe_that_scores_with_data_reads_calib_only(name: str, network: str) -> None:
    case = CASES[network]
    task = case.task(train=Forbidden(), metric=forbidden_metric)
    assert same(pruned(recipe(name), case, task).masks, one_shot(name, network).masks)


@pytest.mark.parametrize(("name", "network"), [(r, m) for r, m in TOLD if m == "cnn"])
def test_data_does_matter_to_a_recipe_that_declares_it(name: str, network: str) -> None:
    case = CASES[network]
    fresh = case.task(calib=case.batches(2, seed=77))
    found = prunus.methods.get(name)
    alike = same(pruned(recipe(name), case, fresh).masks, one_shot(name, network).masks)
    if alike and found.criterion.asks():  # a few dozen channels may fall the same way; their scores do not
        model = case.model()
        alike = same(prunus.score(model, fresh, recipe(name)), prunus.score(model, case.task(), recipe(name)))
    parts = [p for p in (found.criterion, found.start, found.allocate) if p is not None]
    reads = {e.reads for part in parts for e in part.asks().values()} or {"nothing"}
    # Prune-and-grow recipes read gradients only for what they regrow, and steps=0 regrows by those of the calibration.
    assert alike == (reads == {"nothing"} and not regrows(name))


def regrows(name: str) -> bool:
    return prunus.methods.get(name).grow is not None and len(prunus.methods.get(name).timeline(0.4, 0)) > 1


@pytest.mark.parametrize("name", [n for n in NAMES if prunus.methods.get(n).scores_from == "labels"])
def test_what_is_missing_is_named_before_anything_is_changed(name: str) -> None:
    case = CASES["vit" if (name, "cnn") in NO_STRUCTURE else "cnn"]
    for changes, wanted in (({"loss": None}, "Task\\(loss="), ({"calib": None, "train": None}, "Task\\(calib=")):
        model = case.model()
        with pytest.raises(SpecError, match=wanted):
            prunus.Session(model, recipe(name), case.task(**changes), sparsity=0.5)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), case.model().parameters(), strict=True))


@pytest.mark.parametrize(("name", "network"), [(r, m) for r, m in FREE if m == "mlp" and needs_example(r)])
def test_an_example_that_is_needed_is_asked_for(name: str, network: str) -> None:
    with pytest.raises(SpecError, match=r"Task\(example="):
        pruned(recipe(name), CASES[network], prunus.Task())


@pytest.mark.parametrize(
    "name",
    # Prune-and-grow recipes start from a random mask: without steps they score nothing.
    sorted(
        {r for r, _ in TOLD if prunus.methods.get(r).scores_from == "labels" and prunus.methods.get(r).grow is None}
    ),
)
def test_an_empty_calibration_set_is_an_error(name: str) -> None:
    case = CASES["vit" if (name, "cnn") in NO_STRUCTURE else "cnn"]
    with pytest.raises(DataError, match="no batch"), quiet():
        prunus.prune(case.model(), case.task(calib=[]), recipe(name), sparsity=0.5)
