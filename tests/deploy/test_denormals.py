"""Numbers below full precision become zeros, all others stay bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.core.errors import SpecError
from prunus.deploy import flush_denormals_
from prunus.deploy.denormals import arithmetic_kept, denormals_of
from prunus.deploy.examined import examine
from prunus.deploy.manifest import read_manifest
from tests.deploy.toys import pixels, toy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_denormals_become_zeros(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    layer = nn.Linear(8, 1).to(dtype)
    values = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 2, -tiny / 4, torch.inf, torch.nan], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(values.to(dtype)[None])
    assert flush_denormals_(layer) == {"weight": 2}
    found = layer.weight.detach()[0]
    assert found[:2].signbit().tolist() == [False, True] and bool((found[:2] == 0).all())
    assert found[2:4].tolist() == [tiny, -tiny] and found[4:6].tolist() == [0, 0]
    assert bool(found[6].isinf()) and bool(found[7].isnan())
    assert flush_denormals_(layer) == {}


def test_they_are_seen_where_arithmetic_takes_them_as_zero() -> None:
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1e-41)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        assert flush_denormals_(layer) == {"weight": 4}
    finally:
        torch.set_flush_denormal(False)
    assert not layer.weight.view(torch.int32).any()


@pytest.mark.parametrize("before", [False, True])
def test_arithmetic_is_as_it_was_whatever_a_library_sets(before: bool) -> None:
    if not torch.set_flush_denormal(before):
        pytest.skip("this processor has no such mode")
    try:
        with arithmetic_kept():
            torch.set_flush_denormal(not before)
        assert bool((torch.full((1,), 1e-38) * 1e-2 == 0).item()) == before
    finally:
        torch.set_flush_denormal(False)


def test_small_numbers_of_half_precision_stay() -> None:
    layer = nn.Linear(2, 1, bias=False).half()
    with torch.no_grad():
        layer.weight.fill_(6e-8)
    assert flush_denormals_(layer) == {} and bool((layer.weight > 0).all())


def test_buffers_count_and_meta_is_refused() -> None:
    norm = nn.BatchNorm1d(3)
    norm.running_var.fill_(1e-42)  # type: ignore[union-attr, operator]
    assert flush_denormals_(norm) == {"running_var": 3}
    with pytest.raises(SpecError, match="meta device"):
        flush_denormals_(nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0), (5,), (7, 300_000)])
def test_they_are_counted_in_pieces(shape: tuple[int, ...]) -> None:
    tensor = torch.full(shape, 1e-41)
    found = denormals_of({"a": tensor, "b": tensor.half(), "c": torch.ones(shape), "d": torch.ones(shape).long()})
    assert found == ({"a": tensor.numel()} if tensor.numel() else {})
    turned = tensor.mT if tensor.dim() == 2 else tensor
    assert denormals_of({"a": turned}) == found


def test_saving_keeps_them_and_says_how_many_there_are(tmp_path: Path) -> None:
    model = toy()
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, :2] = torch.tensor([1e-41, -1e-42])
        model.conv1.weight.fill_(0.5)
    result = prunus.prune(model, prunus.Task(example=(pixels(),)), "magnitude", sparsity=0.0)
    folder = prunus.save(result, tmp_path / "x")
    assert read_manifest(folder).denormals == {"conv2.weight": 2}
    kept = prunus.load(folder, toy).state_dict()["conv2.weight"][0, 0, 0, :2]
    assert kept.view(torch.int32).tolist() == torch.tensor([1e-41, -1e-42]).view(torch.int32).tolist()
    assert any("2 numbers in 1 tensors are too small" in said for said in examine(folder, batches=(), size=64).says)
    flush_denormals_(result.model)
    assert read_manifest(prunus.save(result, tmp_path / "x")).denormals == {}
