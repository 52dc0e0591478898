"""`prunus prune --latency`, with a clock that tells the same time on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import prunus
from prunus.core.budget import Timing
from prunus.measure import tables
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


def test_tables_are_filled_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "ENOUGH_SECONDS", 0.0)
    asked = ("latency", "mlp", "--threads", 1)
    plan = told(*asked, "--dry-run")
    assert plan["missing"] == plan["shapes"] == 3 and plan["widths"] > 3 and not (tmp_path / "cache").exists()
    first = told(*asked)
    again = told(*asked)
    assert (first["measured"], again["measured"]) == (3, 0) and first["tables"] == again["tables"]
    assert {layer["param"] for layer in first["layers"]} == {f"layers.{i}.weight" for i in (0, 2, 4)}
    assert told(*asked, "--dry-run")["missing"] == 0
    call(*asked, "-o", tmp_path / "page.html")
    assert "64 -&gt; 100, 1 rows" in (tmp_path / "page.html").read_text()


def test_the_solver_is_chosen_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prunus, "default_clock", lambda: by_size)
    asked = ("prune", "mlp", "-d", "digits", "-m", "taylor_fo", "--dry-run")
    own = told(*asked, "--latency", 0.5, "--solver", "own")
    assert own["kept"]["latency"] <= 0.5
    assert "it needs --latency" in call(*asked, "--macs", 0.5, "--solver", "own", code=2).output
