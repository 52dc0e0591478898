"""`prunus prune --latency`, with a clock that tells the same time on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import prunus
from prunus.core.budget import Timing
from tests.cli.test_commands import call, told


def by_size(dense: nn.Module, pruned: nn.Module, example: Any) -> Timing:
    """Time is the share of the parameters that is left; a batch of more than one is timed."""
    assert len(example[0]) > 1
    share = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in dense.parameters())
    return Timing(share, 0.9 * share, 1.1 * share)


def test_a_budget_in_latency_is_planned_met_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prunus, "default_clock", lambda: by_size)
    asked = ("prune", "mlp", "-d", "digits", "-m", "l1_filter", "--latency", 0.5)
    plan = told(*asked, "--dry-run")
    assert plan["budget"] == "0.5 of the latency" and 0.4 < plan["kept"]["latency"] <= 0.5
    call(*asked, "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (record,) = report["methods"]
    assert record["budget"] == "at most 0.5 of the dense median latency kept"
    assert any("candidates at batch 128" in note and "of the dense latency" in note for note in record["notes"])
    assert record["params_kept"] / record["params_dense"] == pytest.approx(plan["kept"]["latency"])
