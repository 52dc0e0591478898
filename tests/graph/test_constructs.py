"""One construct each: what must be prunable is, what must be refused is, and nothing is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.graph import compact, trace
from prunus.graph.flow import Flow
from tests.graph.constructs import CASES
from tests.graph.nets import Case
from tests.graph.proof import producers, prove, some


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_or_equal(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flow, "strict", True)
    torch.manual_seed(0)
    structure, _ = prove(case.build(), case.example())
    found = producers(structure)
    assert set(case.prunable) <= found, structure.frozen
    assert not set(case.frozen) & found
    assert set(case.frozen) <= set(structure.frozen)
    assert all(structure.frozen[name] for name in structure.frozen)
    for name in case.frozen:
        assert getattr(case, "because", "") in structure.frozen[name]


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 70


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_hooked_weights_after_training(wrap: type) -> None:
    """The older hooks leave a computed weight with a graph behind, of which PyTorch makes no deep copy."""
    model = nn.Sequential(wrap(nn.Linear(8, 10)), nn.ReLU(), nn.Linear(10, 4))
    x = torch.randn(3, 8)
    structure = trace(model.eval(), x)
    model.train()(x).sum().backward()
    small, _ = compact(model, structure.groups, some(structure, 0.4), x)
    assert isinstance(small[0], nn.Linear) and small[0].out_features == 6
