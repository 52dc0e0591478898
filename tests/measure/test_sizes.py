"""Parameters, bytes, peak memory, and the record of them all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus import measure
from prunus.core.errors import DataError, SpecError


def tied() -> nn.Module:
    model = nn.Module()
    model.embed = nn.Embedding(10, 4)
    model.head = nn.Linear(4, 10)
    model.head.weight = model.embed.weight
    model.register_buffer("mask", torch.zeros(7, dtype=torch.bool))
    return model


def test_params_count_tied_weights_once_and_buffers_apart() -> None:
    model = tied()
    with torch.no_grad():
        model.embed.weight[0] = 0.0
        model.head.bias.fill_(float("nan"))
    count = measure.params(model)
    assert (count.total, count.nonzero, count.buffers, count.unknown) == (50, 46, 7, 0)
    assert count.per_parameter == {"embed.weight": (40, 36), "head.bias": (10, 10)}
    assert count.tied == {"head.weight": "embed.weight"}
    assert count.density == 46 / 50
    assert count.sparsity == pytest.approx(4 / 50)
    assert json.loads(json.dumps(count.to_dict()))["per_parameter"]["embed.weight"] == {"total": 40, "nonzero": 36}


def test_two_parameters_on_one_memory_are_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    assert measure.params(model).total == 9
    assert measure.state_bytes(model).parameters == 36


def test_params_on_meta_and_without_any() -> None:
    with torch.device("meta"):
        count = measure.params(nn.Linear(3, 4))
    assert (count.total, count.nonzero, count.unknown) == (16, 16, 16)
    assert measure.params(nn.ReLU()).density == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_params_of_any_type(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([0.0, 1.0, -2.0]).to(dtype), requires_grad=False)
    assert measure.params(model).nonzero == 2


def test_lazy_parameters_are_refused() -> None:
    for call in (measure.params, measure.state_bytes):
        with pytest.raises(SpecError, match="run the model once"):
            call(nn.LazyLinear(3))


def test_state_bytes() -> None:
    model = tied()
    with torch.no_grad():
        model.embed.weight.zero_()[0] = 1.0
        model.head.bias.fill_(1.0)
    found = measure.state_bytes(model)
    assert (found.parameters, found.buffers, found.dense) == (200, 7, 207)
    # 40 bits + 4 values; dense bias is smaller than with a mask; 7 bits without a value
    assert found.bitmask_estimate == (5 + 16) + 40 + 1
    assert found.to_dict()["dense"] == 207


def test_disk_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.bin").write_bytes(bytes(10))
    (tmp_path / "in" / "b.bin").write_bytes(bytes(5))
    (tmp_path / "same").hardlink_to(tmp_path / "a.bin")
    assert measure.disk_bytes(tmp_path) == 15
    assert measure.disk_bytes(str(tmp_path / "a.bin")) == 10
    with pytest.raises(DataError, match="no file or folder"):
        measure.disk_bytes(tmp_path / "absent")


class Chain(nn.Module):
    """`keep` decides whether the first intermediate lives to the end."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        first = x + 1
        second = first * 2
        if not self.keep:
            del first
        third = second.view(-1) + 1
        third += 1
        return third.sum() + first.sum() if self.keep else third.sum()


def test_peak_memory_counts_what_lives_at_once() -> None:
    x = torch.randn(10, 10)
    short = measure.peak_memory(Chain(keep=False), (x,))
    long = measure.peak_memory(Chain(keep=True), (x,))
    # Beside the tensors, the sums at the end: one, or two and their total.
    assert (short.activations, long.activations) == (2 * 400 + 4, 3 * 400 + 3 * 4)
    assert (short.weights, short.inputs, short.total, short.how) == (0, 400, 1204, "tensors")
    assert measure.peak_memory(Chain(keep=True), (x,)) == long


def test_peak_memory_of_layers() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(inplace=True), nn.Linear(20, 5))
    found = measure.peak_memory(model, (torch.randn(8, 10),))
    assert (found.activations, found.weights) == (4 * 8 * (20 + 5), 4 * (220 + 105))
    with torch.device("meta"):
        nowhere = nn.Linear(2, 2)
    with pytest.raises(SpecError, match="meta device"):
        measure.peak_memory(nowhere, (torch.randn(1, 2),))


def test_profile_and_ratios_name_their_denominators() -> None:
    example = (torch.randn(2, 8),)
    dense, masked, small = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False), nn.Linear(8, 2, bias=False)
    with torch.no_grad():
        masked.weight[:, 2:] = 0.0
    one, two, three = (measure.profile(m, example) for m in (dense, masked, small))
    ratio = measure.ratios(one, two)
    assert (ratio.params_ratio, ratio.macs_ratio, ratio.effective_macs_ratio, ratio.bytes_ratio) == (4.0, 1.0, 4.0, 1.0)
    assert ratio.latency_ratio is None
    ratio = measure.ratios(one, three)
    assert (ratio.params_ratio, ratio.macs_ratio, ratio.effective_macs_ratio, ratio.bytes_ratio) == (2.0, 2.0, 2.0, 2.0)
    assert ratio.memory_ratio == (128 + 64 + 32) / (64 + 64 + 16)
    timed = measure.profile(dense, example, latency=True, runs=30, min_seconds=0.0, threads=1)
    assert timed.latency is not None
    assert measure.ratios(timed, timed).latency_ratio == 1.0
    assert json.loads(json.dumps(timed.to_dict()))["latency"]["threads"] == 1


def test_a_ratio_to_nothing_is_infinite_and_none_in_json() -> None:
    example = (torch.randn(2, 8),)
    gone = nn.Linear(8, 4, bias=False)
    dense = measure.profile(gone, example)
    with torch.no_grad():
        gone.weight.zero_()
    ratio = measure.ratios(dense, measure.profile(gone, example))
    assert math.isinf(ratio.params_ratio)
    assert ratio.to_dict()["params_ratio"] is None
    assert ratio.to_dict()["macs_ratio"] == 1.0


def test_importing_measure_does_not_import_torch() -> None:
    code = "import sys, prunus.measure as m; assert 'torch' not in sys.modules; assert 'macs' in dir(m); m.params"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'flops'"):
        measure.flops  # noqa: B018
    assert all(getattr(measure, name) is not None for name in measure.__all__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_latency_and_memory() -> None:
    model = nn.Linear(1024, 1024).cuda()
    example = (torch.randn(256, 1024),)  # moved to the model's device
    memory = measure.peak_memory(model, example)
    assert memory.how == "cuda allocator"
    assert memory.activations >= 256 * 1024 * 4
    assert measure.latency(model, example, runs=30, min_seconds=0.0).device == "cuda:0"
    assert measure.macs(model, example).total == 256 * 1024 * 1024
