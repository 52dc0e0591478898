"""Activations in files: the same numbers, and nothing left."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from prunus.core.errors import PrunusError
from prunus.stream import prune_folder
from prunus.stream.shelf import Shelf
from tests.stream.test_folder import batches_for, files, saved

pytest.importorskip("transformers")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_what_is_put_is_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, limit=0)
    value = torch.arange(40_000).reshape(100, 400).to(dtype)
    put = shelf.put({"a": (value, None, [value[:2]]), "b": 3})
    kept, nothing, (small,) = put["a"]
    assert nothing is None and put["b"] == 3 and small is not kept
    assert torch.equal(kept, value) and kept.dtype == dtype and shelf.held == 0
    assert shelf.shelved == value.numel() * value.itemsize == shelf.most
    taken = shelf.take(put)["a"][0]
    assert torch.equal(taken, value) and taken.data_ptr() != kept.data_ptr()
    assert torch.equal(shelf.take(kept[1:]), value[1:])  # a view of it is read where it lies
    assert not list(tmp_path.iterdir())
    del put, kept, small
    gc.collect()
    assert shelf.shelved == 0 and not shelf._files


def test_the_limit_is_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, limit=500_000)
    values = [torch.randn(100, 400) for _ in range(5)]
    put = [shelf.put(v) for v in values]
    assert (shelf.held, shelf.shelved) == (480_000, 320_000)
    assert all(a is b for a, b in zip(put[:3], values[:3], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(shelf.take(put), values, strict=True))
    del put[0], values[0]
    gc.collect()
    assert shelf.held == 320_000
    assert Shelf(tmp_path).put(values) is values


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PrunusError, match="could not write activations"):
        Shelf(tmp_path / "absent", limit=0).put(torch.randn(100, 400))


def test_files_change_nothing(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    batches = [{"input_ids": b["input_ids"].repeat(1, 64)} for b in batches_for("llama")]
    whole = prune_folder(folder, tmp_path / "memory", "wanda", batches, sparsity=0.5)
    shelved = prune_folder(folder, tmp_path / "files", "wanda", batches, sparsity=0.5, memory=0)
    assert whole.masks == shelved.masks and shelved.activations > 3 * 2 * 768 * 24 * 4 - 1
    assert files(tmp_path / "memory") == files(tmp_path / "files")
