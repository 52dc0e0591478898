"""Heads, neurons and layers out of models of several towers: streamed as in memory, and towers without data whole."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import Task, methods
from prunus.core.errors import PrunusWarning
from prunus.core.recipe import Recipe
from prunus.engine.walk import blocks_in
from prunus.graph.running import tensors_in
from prunus.parts.granularity import Block
from prunus.stream import Shrunk, by_tower, prune_folder
from tests.stream.test_depth import layers_of
from tests.stream.test_folder import files, read
from tests.stream.test_towers import made

pytest.importorskip("transformers")
FLAP, SHORTGPT = methods.get("flap"), methods.get("shortgpt")
CASES = [
    pytest.param(case, marks=() if case in ("clip", "llava") else pytest.mark.slow)
    for case in ("clip", "llava", "whisper")
]


def whole(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """An input of the whole model: of the kind that has most, two samples."""
    return {k: v[:2] for b in sorted(batches, key=len) for k, v in b.items()}


def dense_of(case: str, folder: Path) -> tuple[Any, list[dict[str, Tensor]]]:
    model, batches, _ = made(case)
    model.save_pretrained(folder)
    return read(type(model), folder), batches


def in_memory(dense: nn.Module, recipe: Recipe, batches: list[Any], sparsity: float) -> prunus.Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = Task(calib=batches, forward=by_tower, example=whole(batches))
        return prunus.prune(dense, task, recipe, sparsity=sparsity)


def streamed(folder: Path, out: Path, recipe: Recipe, batches: list[Any], sparsity: float) -> Shrunk:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrunusWarning)
        found = prune_folder(folder, out, recipe, batches, sparsity=sparsity)
    assert isinstance(found, Shrunk)
    return found


def check_outputs(one: nn.Module, other: nn.Module, batches: list[Any], tolerance: float) -> None:
    theirs, own = one.state_dict(), other.state_dict()
    assert theirs.keys() == own.keys()
    assert all(torch.allclose(own[n], t, tolerance, tolerance) for n, t in theirs.items())
    with torch.no_grad():
        for batch in batches:
            pairs = zip(tensors_in(by_tower(one, batch)), tensors_in(by_tower(other, batch)), strict=True)
            assert all(torch.allclose(a, b, 10 * tolerance, 10 * tolerance) for a, b in pairs)


@pytest.mark.parametrize("case", CASES)
def test_units_of_all_towers_are_chosen_from_together(case: str, tmp_path: Path) -> None:
    dense, batches = dense_of(case, tmp_path / "dense")
    prefixes = [f"{n}." for n in blocks_in(dense)]
    units: Any = FLAP.granularity
    groups = units(dense, whole(batches))
    out = [g.name for g in groups if not any(all(m.param.startswith(p) for m in g.members) for p in prefixes)]
    result = in_memory(dense, replace(FLAP, granularity=replace(units, exclude=tuple(out))), batches, 0.25)
    found = streamed(tmp_path / "dense", tmp_path / "out", FLAP, batches, 0.25)
    kept = {f"{b.name}.{g}": n for b in found.blocks for g, n in b.kept.items() if g not in b.skipped}
    assert kept == {g.name: int(result.unit_masks[g.name].sum()) for g in result.groups if g.name not in found.skipped}
    assert len(kept) > 6
    if case != "llava":  # whose forward looks at token ids, so that what lies between its towers is not named
        assert set(out) <= set(found.spanning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = read(type(dense), found.folder) if found.uniform else prunus.deploy.from_pretrained(found.folder)
        check_outputs(result.compact(), ours, batches, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_layers_of_all_towers_are_chosen_from_together(case: str, tmp_path: Path) -> None:
    dense, batches = dense_of(case, tmp_path / "dense")
    result = in_memory(dense, SHORTGPT, batches, 0.4)
    found = streamed(tmp_path / "dense", tmp_path / "out", SHORTGPT, batches, 0.4)
    gone = json.loads((tmp_path / "out" / "prunus.json").read_text())["removed"]
    assert set(gone) == layers_of(result) and found.uniform
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_outputs(result.compact(), read(type(dense), found.folder), batches, 0.0)


@pytest.mark.parametrize("recipe", [FLAP, replace(SHORTGPT, granularity=Block())], ids=["units", "layers"])
def test_a_tower_without_data_stays_whole_and_is_named(recipe: Recipe, tmp_path: Path) -> None:
    dense, batches = dense_of("clip", tmp_path / "dense")
    with pytest.warns(PrunusWarning, match=r"no calibration batch comes to vision_model\.encoder\.layers\.\*"):
        found = prune_folder(tmp_path / "dense", tmp_path / "out", recipe, batches[:1], sparsity=0.5)
    assert isinstance(found, Shrunk) and {b.name.partition(".")[0] for b in found.blocks} == {"text_model"}
    ours = read(type(dense), found.folder) if found.uniform else prunus.deploy.from_pretrained(found.folder)
    theirs = dense.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in ours.state_dict().items() if n.startswith("vision_model"))
    assert files(tmp_path / "dense") and found.overall == pytest.approx(0.5, abs=0.05)
