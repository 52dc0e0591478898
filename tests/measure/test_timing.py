"""The structure of a latency measurement; no assertion here depends on how fast anything is."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from torch import Tensor, nn

from prunus import measure
from prunus.core.errors import DataError, SpecError
from prunus.measure.timing import paired_ratio, quartiles, verdict


class Logs(nn.Module):
    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        assert not self.training
        self.log.append(f"{self.name}{torch.get_num_threads()}")
        return x * self.weight


def test_latency_says_how_it_was_measured() -> None:
    log: list[str] = []
    threads = torch.get_num_threads()
    found = measure.latency(Logs("a", log), (torch.ones(3, 2),), warmup=4, runs=31, min_seconds=0.0, threads=2)
    assert (found.runs, found.threads, found.batch, found.device, found.dtype) == (31, 2, 3, "cpu", "float64")
    assert log == ["a2"] * 35
    assert 0 < found.q25_ms <= found.median_ms <= found.q75_ms
    assert found.iqr_ms == found.q75_ms - found.q25_ms
    assert len(found.samples_ms) == 31
    assert "samples_ms" not in json.loads(json.dumps(found.to_dict()))
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


def test_threads_and_collection_are_restored_after_an_exception() -> None:
    class Third(Logs):
        def forward(self, x: Tensor) -> Tensor:
            if len(self.log) == 20:
                raise KeyboardInterrupt
            return super().forward(x)

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        measure.latency(Third("a", []), (torch.ones(3, 2),), threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


def test_min_seconds_adds_runs() -> None:
    assert measure.latency(Logs("a", []), (torch.ones(3, 2),), runs=30, min_seconds=0.05).runs > 30


def test_compare_interleaves_and_rotates() -> None:
    log: list[str] = []
    models = {name: Logs(name, log) for name in "ab"}
    found = measure.compare(models, (torch.ones(3, 2),), warmup=1, runs=30, min_seconds=0.0, threads=1)
    assert log == ["a1", "b1"] + ["a1", "b1", "b1", "a1"] * 15
    assert found.baseline == "a"
    assert list(found.latency_ratio) == ["b"]
    a, b = found.latency["a"], found.latency["b"]
    assert found.latency_ratio["b"] == paired_ratio(a.samples_ms, b.samples_ms)
    assert set(json.loads(json.dumps(found.to_dict()))) == {"baseline", "latency", "latency_ratio"}
    other = measure.compare(models, (torch.ones(3, 2),), runs=30, min_seconds=0.0, baseline="b")
    assert list(other.latency_ratio) == ["a"]


def test_paired_ratio_cancels_drift() -> None:
    drift = [1.0 + 0.1 * i for i in range(40)]
    ratio = paired_ratio([2.0 * d for d in drift], drift)
    assert (ratio.q25, ratio.median, ratio.q75) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio.noise > 0.3
    assert ratio.verdict == "2.00x faster"


@pytest.mark.parametrize(
    ("q25", "median", "q75", "noise", "expected"),
    [
        (1.7, 1.8, 1.9, 0.02, "1.80x faster"),
        (0.9, 1.1, 1.2, 0.02, "not faster"),
        (1.01, 1.02, 1.03, 0.05, "not faster"),
        (0.97, 0.98, 0.99, 0.05, "not faster"),
        (0.45, 0.5, 0.55, 0.02, "2.00x slower"),
        (1.0, 1.5, 2.0, 0.0, "not faster"),
    ],
)
def test_verdict(q25: float, median: float, q75: float, noise: float, expected: str) -> None:
    assert verdict(q25, median, q75, noise) == expected


def test_quartiles() -> None:
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runs": 29}, "at least 30"),
        ({"warmup": 0}, "at least 1"),
        ({"min_seconds": -1.0}, "0 or more"),
        ({"threads": 0}, "1 or more"),
    ],
)
def test_settings_that_cannot_give_a_median(settings: dict[str, float], message: str) -> None:
    log: list[str] = []
    with pytest.raises(SpecError, match=message):
        measure.latency(Logs("a", log), (torch.ones(3, 2),), **settings)  # type: ignore[arg-type]
    assert not log


def test_wrong_use() -> None:
    example = (torch.ones(3, 2),)
    with pytest.raises(SpecError, match="at least two"):
        measure.compare({"a": nn.ReLU()}, example)
    with pytest.raises(SpecError, match="not among"):
        measure.compare({"a": nn.ReLU(), "b": nn.ReLU()}, example, baseline="c")
    with pytest.raises(DataError, match="does not run on the example"):
        measure.latency(nn.Linear(3, 4), example)
    with torch.device("meta"):
        nowhere = nn.Linear(2, 2)
    with pytest.raises(SpecError, match="meta device"):
        measure.latency(nowhere, example)
