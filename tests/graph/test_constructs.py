"""One construct each: what must be prunable is, what must be refused is, and nothing is wrong."""

from __future__ import annotations

import pytest

from prunus.graph.flow import Flow
from tests.graph.constructs import CASES
from tests.graph.nets import Case
from tests.graph.proof import producers, prove


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_or_equal(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flow, "strict", True)
    structure, _ = prove(case.build(), case.example())
    found = producers(structure)
    assert set(case.prunable) <= found, structure.frozen
    assert not set(case.frozen) & found
    assert set(case.frozen) <= set(structure.frozen)
    assert all(structure.frozen[name] for name in structure.frozen)
