"""Accuracy and its rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus import measure
from prunus.core.errors import DataError, SpecError

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 5.0, 2.0]])
LABELS = torch.tensor([0, 1, 0, 2])
IDENTITY = nn.Identity()


def test_top_1_and_top_k_over_uneven_batches() -> None:
    batches = [(LOGITS[:3], LABELS[:3]), (LOGITS[3:], LABELS[3:])]
    assert measure.accuracy(IDENTITY, batches) == 0.5
    assert measure.accuracy(IDENTITY, batches, top=2) == 1.0
    assert measure.accuracies(IDENTITY, batches, top=(1, 2)) == {1: 0.5, 2: 1.0}


def test_ties_go_to_the_first_class_and_nan_is_wrong() -> None:
    equal = torch.zeros(3, 3)
    assert measure.accuracy(IDENTITY, [(equal, torch.tensor([0, 1, 2]))]) == pytest.approx(1 / 3)
    assert measure.accuracy(IDENTITY, [(equal, torch.tensor([0, 1, 2]))], top=2) == pytest.approx(2 / 3)
    broken = torch.full((2, 3), float("nan"))
    assert measure.accuracy(IDENTITY, [(broken, torch.tensor([0, 2]))], top=3) == 0.0


def test_dict_batches_objects_with_logits_positions_and_ignored_labels() -> None:
    class Tagger(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=x)

    batch = {"x": LOGITS.view(2, 2, 3), "labels": torch.tensor([[0, -100], [1, 1]])}
    assert measure.accuracy(Tagger(), [batch]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no labelled example"),
        ([(LOGITS, torch.full((4,), -100))], "no labelled example"),
        ([LOGITS], "needs \\(inputs, labels\\)"),
        ([{"x": LOGITS}], "none of them is 'labels'"),
        ([(LOGITS, LABELS[:3])], "do not fit"),
        ([(LOGITS, LABELS.float())], "class indices"),
        ([(LOGITS, LABELS + 1)], "labels run from 1 to 3, the model has 3 classes"),
    ],
)
def test_data_that_has_no_accuracy(batches: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure.accuracy(IDENTITY, batches)


@pytest.mark.parametrize("top", [0, 4])
def test_top_k_out_of_range(top: int) -> None:
    with pytest.raises(SpecError, match="top"):
        measure.accuracy(IDENTITY, [(LOGITS, LABELS)], top=top)


def test_evaluation_mode_inside_and_flags_back_after() -> None:
    model = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm1d(3)).train()
    model[1].eval()
    assert measure.accuracy(model, [(LOGITS, LABELS)]) == 0.5
    assert [m.training for m in model.modules()] == [True, True, False]
