"""Gradients of the whole model's loss for a folder: block by block, as in memory to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus import Task
from prunus.core.errors import SpecError
from prunus.parts.allocation import NofM, OutlierDensities, Uniform
from prunus.parts.criteria import GradientBlended
from prunus.stream import prune_folder, slopes
from prunus.stream.shards import Checkpoint
from tests.stream.test_ahead import saved, stopping
from tests.stream.test_folder import batches_for, read, same

pytest.importorskip("transformers")

GBLM = prunus.methods.get("gblm")
RECIPES = {
    "gblm": GBLM,
    "first norm": replace(GBLM, criterion=GradientBlended(norm=1.0)),
    "2:4": replace(GBLM, allocate=NofM(2, 4)),
    "outliers": replace(GBLM, allocate=OutlierDensities(of=Uniform())),
}
CASES = [
    *[("gblm", kind) for kind in ("llama", "gpt2", "tied bf16", "gemma3", "mixtral")],
    *[(name, "llama") for name in ("first norm", "2:4", "outliers")],
]
OFTEN = {("gblm", "llama"), ("gblm", "mixtral"), ("outliers", "llama")}


def labelled(kind: str) -> list[Any]:
    return [{**b, "labels": b["input_ids"]} for b in batches_for(kind)]


def loss(model: Any, batch: Any) -> torch.Tensor:
    found: torch.Tensor = model(**batch).loss
    return found


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*c, marks=() if c in OFTEN else pytest.mark.slow) for c in CASES]
)
@pytest.mark.filterwarnings("ignore::prunus.core.errors.PrunusWarning")
@pytest.mark.parametrize("memory", [None, pytest.param(0, marks=pytest.mark.slow)])
def test_streamed_is_in_memory(name: str, kind: str, memory: int | None, tmp_path: Path) -> None:
    model, folder = saved(kind, tmp_path / "dense")
    batches, recipe = labelled(kind), RECIPES[name]
    budget = None if name == "2:4" else 0.6
    result = prunus.prune(model, Task(calib=batches, loss=loss), recipe, sparsity=budget)
    prune_folder(folder, tmp_path / "out", recipe, batches, sparsity=budget, memory=memory)
    assert same(result.model, read(type(model), tmp_path / "out"))
    plain = prunus.prune(
        read(type(model), folder),
        Task(calib=batches, loss=loss),
        replace(recipe, criterion=GradientBlended(alpha=0.0)),
        sparsity=budget,
    )
    assert not same(plain.model, result.model)  # the gradients count


def test_the_lengths_are_those_of_a_backward_through_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch by batch through `loss.backward()`, written down by hand."""
    model, folder = saved("llama", tmp_path / "dense")
    batches = labelled("llama")
    told: dict[str, torch.Tensor] = {}
    kept = slopes.known

    def noted(run: Any, name: str, *rest: Any) -> Any:
        file = Checkpoint.of(run.part / f"slopes-{name}.safetensors")
        told.update({f"{name}.{n}": file.read(n).clone() for n in file.entries})
        return kept(run, name, *rest)

    monkeypatch.setattr("prunus.stream.folder.known", noted)
    prune_folder(folder, tmp_path / "out", GBLM, batches, sparsity=0.5)
    squares: dict[str, torch.Tensor] = {}
    for batch in batches:
        model.eval().zero_grad()
        loss(model, batch).backward()
        for n, p in model.named_parameters():
            squares[n] = squares.get(n, torch.zeros(())) + p.grad.float().square() / len(batches)
    inside = {n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
    assert told.keys() == inside
    for n in inside:
        torch.testing.assert_close(told[n], squares[n].sqrt(), rtol=1e-5, atol=1e-9)


def test_a_stopped_run_goes_on_and_gathers_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    arguments: Any = {"recipe": GBLM, "batches": labelled("llama"), "sparsity": 0.6}
    prune_folder(folder, tmp_path / "whole", **arguments)
    with pytest.raises(KeyboardInterrupt):
        prune_folder(folder, tmp_path / "out", **arguments, on_block=stopping(1))
    monkeypatch.setattr(slopes, "_forward", None)
    prune_folder(folder, tmp_path / "out", **arguments, resume=True)
    one, other = (Checkpoint(tmp_path / n) for n in ("whole", "out"))
    assert all(torch.equal(one.read(n), other.read(n)) for n in one.entries)


def test_what_cannot_be_gathered_is_refused(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    with pytest.raises(SpecError, match="every batch is a dict with labels"):
        prune_folder(folder, tmp_path / "out", GBLM, batches_for("llama"), sparsity=0.6)
    _, folder = saved("t5", tmp_path / "t5")
    with pytest.raises(SpecError, match="between them"):
        prune_folder(
            folder, tmp_path / "out", GBLM, [{**b, "labels": b["input_ids"]} for b in batches_for("t5")], sparsity=0.6
        )
    assert not (tmp_path / "out").exists()
