"""The experiment on methods that prune while they train: it runs, goes on where it stopped, and judges."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from prunus.lab import ledger

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "sparse_training.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(FILE.parent))  # as when it is run: it reads its neighbour
    spec = importlib.util.spec_from_file_location("sparse_training", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_runs_are_made_once_and_judged(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "runs.csv"
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    asked = ["--run", "--quick", "--table", str(table), "--rates", "0.1"]
    script.main([*asked, "--only", "erk_random", "rigl", "--seeds", "0"])
    first = table.read_text(encoding="utf-8")
    found = ledger.rows(table, script.Run)
    assert [(r.method, r.sparsity) for r in found] == [(m, s) for m in ("erk_random", "rigl") for s in (0.95, 0.98)]
    assert len({r.initial for r in found}) == 1  # one seed, one set of initial weights
    assert all(0 <= r.test <= 1 and r.kept == pytest.approx(1 - r.sparsity, abs=2e-3) for r in found)
    script.main([*asked, "--only", "erk_random", "--seeds", "0"])
    assert table.read_text(encoding="utf-8") == first
    capsys.readouterr()
    script.main([*asked, "--only", "constrained_l0", "--seeds", "0", "1", "--markdown"])
    assert "gates under a Lagrangian" in capsys.readouterr().out
    assert "| `constrained_l0` | 0.5 |" in script.PAGE.read_text(encoding="utf-8")


def test_validation_chooses_and_test_does_not(script: ModuleType) -> None:
    run = script.Run("rigl", "", 0.95, 0, 0.1, 24, 192, valid=0.5, test=0.9)
    better = [replace(run, seed=s, rate=0.03, valid=0.6, test=0.1) for s in (0, 1)]
    lone = replace(run, rate=0.01, valid=0.99, test=0.2)  # of one seed only
    chosen = script.cell([run, replace(run, seed=1), *better, lone], "rigl", 0.95)
    assert [r.rate for r in chosen.runs.values()] == [0.03, 0.03] and chosen.test == {0: 10.0, 1: 10.0}


def test_every_claim_is_about_runs_that_are_made(script: ModuleType) -> None:
    made = {(a.name, s) for a in script.arms().values() for s in a.sparsities}
    sides = {side for claim in script.CLAIMS for side in (claim.left, claim.right) if side is not None}
    assert sides <= made
