"""Budgets in latency on other runtimes: the clock, its tables, and the command that uses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus import Budget, Task, methods
from prunus.core.errors import UnknownNameError
from prunus.deploy import RuntimeClock
from prunus.measure import tables
from prunus.parts.granularity import Channel
from tests.cli.test_commands import told


def net(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    ).eval()  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "ENOUGH_SECONDS", 0.0)


@pytest.mark.parametrize("runtime", ["eager", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_a_budget_is_met_on_a_runtime(runtime: str, tmp_path: Path) -> None:
    if runtime != "eager":
        pytest.importorskip(runtime)
    clock = RuntimeClock(runtime, threads=1, runs=30, min_seconds=0.0)
    recipe = replace(methods.l1_filter, granularity=Channel(round_to=8))
    x = torch.randn(1, 3, 24, 24)
    result = prunus.prune(net(), Task(example=(x,), clock=clock), recipe, budget=Budget(latency=0.6))
    found = result.history[-1]
    assert 0.0 < found["latency"] <= 0.6 and found["latency_predicted"] < 1.0 and found["timed"] <= 10
    assert result.compact()(x).shape == (1, 10)
    assert [p.name.partition("-")[0] for p in (tmp_path / "cache" / "latency").iterdir()] == [runtime]


def test_a_smaller_network_takes_a_smaller_share() -> None:
    found = RuntimeClock("eager", threads=1, runs=30, min_seconds=0.0)(net(128), net(8), torch.randn(2, 3, 24, 24))
    assert found.share < 0.7 and found.low <= found.high


def test_a_runtime_without_tables_prices_nothing() -> None:
    assert RuntimeClock("compile").prices(net(), torch.randn(1, 3, 24, 24), ()) is None
    with pytest.raises(UnknownNameError):
        RuntimeClock("tpu")


@pytest.mark.slow
def test_the_command_measures_on_the_runtime_that_it_rounds_for() -> None:
    pytest.importorskip("onnxruntime")
    asked = ("prune", "mlp", "-d", "digits", "-m", "l1_filter", "--dry-run")
    plan = told(*asked, "--latency", 0.9, "--for", "onnxruntime")
    assert plan["kept"]["latency"] <= 0.9 and all(g["keep"] % 4 == 0 for g in plan["groups"])
