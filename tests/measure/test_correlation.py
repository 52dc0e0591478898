"""The overlap of large weights and the correlation of magnitudes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from prunus import measure
from prunus.core.errors import DataError, SpecError


def test_by_hand() -> None:
    a = {"w": torch.tensor([[4.0, -3.0], [2.0, 1.0]]), "v": torch.tensor([[0.5, 6.0]]), "bias": torch.ones(2)}
    b = {"w": torch.tensor([[-5.0, 1.0], [4.0, 0.0]]), "v": torch.tensor([[7.0, 3.0]]), "bias": torch.zeros(2)}
    found = measure.weight_correlation(a, b, share=0.5)
    # Largest three of (4 3 2 1 .5 6): positions 0, 1, 5; of (5 1 4 0 7 3): 0, 2, 4.
    assert found.overlap == pytest.approx(1 / 3) and found.layers == {"w": 0.5, "v": 0.0}
    x, y = [4, 3, 2, 1, 0.5, 6], [5, 1, 4, 0, 7, 3]
    mx, my = sum(x) / 6, sum(y) / 6
    cov = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    size = math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))
    assert found.pearson == pytest.approx(cov / size)


def test_equal_and_unrelated_networks() -> None:
    torch.manual_seed(0)
    net = nn.Linear(100, 100)
    same = measure.weight_correlation(net, copy.deepcopy(net))
    assert same.overlap == 1.0 and same.pearson == pytest.approx(1.0)
    other = measure.weight_correlation(net, nn.Linear(100, 100), share=0.3)
    assert other.overlap == pytest.approx(0.3, abs=0.03) and abs(other.pearson) < 0.05


def test_the_earlier_of_equal_weights_is_larger() -> None:
    found = measure.weight_correlation(
        {"w": torch.ones(2, 2)}, {"w": torch.tensor([[2.0, 3.0], [0.0, 0.0]])}, share=0.5
    )
    assert found.overlap == 1.0 and math.isnan(found.pearson)


def test_what_is_refused() -> None:
    net = nn.Linear(2, 2)
    for share in (0.0, 1.5):
        with pytest.raises(SpecError):
            measure.weight_correlation(net, net, share=share)
    with pytest.raises(SpecError, match="is not one"):
        measure.weight_correlation(net, net, share=0.1)
    with pytest.raises(DataError):
        measure.weight_correlation(net, nn.Linear(3, 2))
