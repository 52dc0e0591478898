"""Counts that runtimes like: several multiples, small groups pruned too, heads by their width; measured staircases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus import Task, groups, methods, prune
from prunus.core.errors import PrunusWarning, SpecError, UnknownNameError
from prunus.deploy import multiples, staircase, widths
from prunus.deploy.rounding import Staircase
from prunus.lab import zoo
from prunus.parts.granularity import Channel, Coupled, Head


@pytest.fixture(autouse=True)
def nothing_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No staircase of the machine that the tests run on."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("target", "steps"),
    [("onnx", (16, 8, 4)), ("openvino", (16, 8, 4)), ("openvino-bf16", (32, 16, 8)), ("torchao-int8", (32, 16, 8))],
)
def test_targets_have_multiples(target: str, steps: tuple[int, ...]) -> None:
    assert multiples(target) == steps


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        multiples("openvin")


class Widths(nn.Module):
    """Layers of several widths."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (8, 12, 24, 40, 100, 10)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_each_group_takes_the_first_step_of_which_it_has_two() -> None:
    torch.manual_seed(0)
    model, task = Widths(), Task(example=(torch.randn(2, 8),))
    unit = Channel(round_to=(16, 8, 4))
    found = {g.units: g.multiple for g in groups(model, task.example, granularity=unit)}
    assert found == {12: 4, 24: 8, 40: 16, 100: 16}
    small = prune(model, task, replace(methods.l1_filter, granularity=unit), sparsity=0.3).compact()
    # 0.7 of 12, 24, 40, 100 is 8.4, 16.8, 28, 70: rounded down.
    assert [layer.out_features for layer in small.layers] == [8, 16, 16, 64, 10]


def test_one_number_means_what_it_meant() -> None:
    model, x = Widths(), (torch.randn(2, 8),)
    assert {g.units: g.multiple for g in groups(model, x, granularity=Channel(round_to=16))} == dict.fromkeys(
        (12, 24, 40, 100), 16
    )


def test_heads_are_as_wide_as_their_channels() -> None:
    """A head of 16 channels is a multiple of 16 by itself; one of 8 goes in pairs."""
    model, x = zoo.build("gpt_tiny"), (torch.arange(16).view(1, 16),)
    heads = groups(model, x, granularity=Head(round_to=(16, 8)))
    assert heads
    for group in heads:
        wide = min(m.positions(group.units).shape[1] for m in group.with_role("out"))
        assert wide > 1 and group.multiple * wide % 16 == 0 and group.multiple == max(1, 16 // wide)


@pytest.mark.parametrize("steps", [(), (0,), (16, 0), 0])
def test_steps_are_positive(steps: Any) -> None:
    with pytest.raises(SpecError, match="at least 1"):
        Coupled(round_to=steps)


def test_steps_survive_json() -> None:
    unit = Channel(round_to=(16, 8, 4))
    assert Channel.from_dict(unit.to_dict()) == unit


def stairs(step: int, widths: tuple[int, ...]) -> Staircase:
    """A machine that pays for whole steps."""
    ms = tuple(float(-(-w // step) * step) ** 2 / 1e6 for w in widths)
    return Staircase("x", "linear", widths, ms, tuple(w * w / m for w, m in zip(widths, ms, strict=True)), 1)


def test_the_best_width_of_a_staircase() -> None:
    found = stairs(16, tuple(range(32, 100, 4)))
    assert found.multiple() == 16
    assert [found.best(w) for w in (64, 68, 52, 96)] == [64, 64, 48, 96]
    with pytest.raises(SpecError, match="measure more"):
        found.best(20)
    assert stairs(4, (46, 48, 50, 52)).multiple() == 4
    with pytest.raises(SpecError, match="tell no multiple apart"):
        stairs(4, (50, 54)).multiple()


def test_a_staircase_is_measured() -> None:
    found = staircase("eager", "linear", (16, 32, 256), positions=8, threads=1)
    assert found.widths == (16, 32, 256) and len(found.ms) == len(found.rate) == 3
    # 256 times as many multiplications take longer, and do more of them per second.
    assert found.ms[2] > found.ms[0] > 0 and found.rate[2] > found.rate[0]
    with pytest.raises(SpecError, match="growing numbers"):
        staircase("eager", "linear", (32, 16))
    with pytest.raises(SpecError, match="linear, conv1x1 or conv3x3"):
        staircase("eager", "conv5x5", (16,), threads=1)


def playing(monkeypatch: pytest.MonkeyPatch, steps: Iterator[int]) -> None:
    """A machine whose staircases have these steps, one after another."""

    def measured(runtime: str, layer: str, wide: tuple[int, ...]) -> Staircase:
        return replace(stairs(next(steps), wide), runtime=runtime, layer=layer)

    monkeypatch.setattr(widths, "staircase", measured)


@pytest.mark.parametrize(
    ("three", "one", "steps"), [(8, 8, (8, 4)), (4, 4, (4,)), (8, 16, (16, 8, 4)), (32, 16, (32, 16, 8))]
)
def test_what_was_measured_here_is_what_counts_are_rounded_to(
    three: int, one: int, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    playing(monkeypatch, iter([three, one, three, one]))
    found = widths.learn("onnxruntime", tuple(range(32, 130, 2)))
    assert found is not None and widths.learned("onnxruntime") == found
    assert multiples("onnxruntime") == steps and found.steps == steps
    # Of nothing else was anything learned: not of another runtime, and a file may run anywhere.
    assert multiples("onnx") == multiples("openvino") == (16, 8, 4)


def test_two_measurements_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    playing(monkeypatch, iter([8, 8, 8, 16]))
    assert widths.learn("onnxruntime", tuple(range(32, 100, 4))) is None
    assert widths.learned("onnxruntime") is None and multiples("onnxruntime") == (16, 8, 4)


@pytest.mark.parametrize(
    "broken", ["{", '{"format": 1}', '{"format": 1, "multiple": 7, "stairs": []}', '{"format": 9}']
)
def test_a_broken_file_is_named_and_left_out(broken: str) -> None:
    path = widths.where("onnxruntime")
    path.parent.mkdir(parents=True)
    path.write_text(broken)
    with pytest.warns(PrunusWarning, match="cached widths"):
        assert multiples("onnxruntime") == (16, 8, 4)


def test_other_machines_and_versions_have_files_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    playing(monkeypatch, iter([8, 8, 8, 8]))
    widths.learn("eager", tuple(range(32, 100, 4)))
    assert json.loads(widths.where("eager").read_text())["machine"]["cores"] >= 1
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert widths.learned("eager") is None


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_layers_in_a_row_are_timed_where_models_are_not_needed(runtime: str) -> None:
    if runtime != "eager":
        pytest.importorskip(runtime)
    found = staircase(runtime, "conv3x3", (8, 64), positions=14, threads=1)
    assert found.ms[1] > found.ms[0] > 0
