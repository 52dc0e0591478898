"""Densities that are dealt out before anything is pruned: from a pass over the folder, as in memory to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus import Task
from prunus.core.errors import DataError, SpecError
from prunus.parts.allocation import ForwardDensities, NofM, OutlierDensities, PerLayer, SpectralDensities, Uniform
from prunus.parts.evidence.ahead import ForwardDifferenceEvidence
from prunus.parts.granularity import Element
from prunus.stream import prune_folder
from prunus.stream.ahead import settled
from prunus.stream.shards import Checkpoint
from tests.stream.test_folder import ROOT, batches_for, files, network, read, same

pytest.importorskip("transformers")

OWL = prunus.methods.get("owl")
SURGEON = replace(prunus.methods.get("sparsegpt"), allocate=OutlierDensities(of=Uniform()))
RECIPES = {
    "owl": OWL,
    "alpha_pruning": prunus.methods.get("alpha_pruning"),
    "sparsegpt": SURGEON,
    "mixed 8": replace(OWL, allocate=OutlierDensities(of=NofM(4, 8), spread=0.2)),
    "layers": replace(OWL, allocate=SpectralDensities(per="layer")),
}
CASES = [
    *[("owl", kind) for kind in ("llama", "tied bf16", "gemma3", "bert", "t5", "mixtral", "mamba")],
    *[("alpha_pruning", kind) for kind in ("llama", "gpt2", "mixtral")],
    *[("sparsegpt", "llama"), ("mixed 8", "llama"), ("layers", "gemma3")],
]
OFTEN = {("owl", "llama"), ("owl", "mixtral"), ("alpha_pruning", "gpt2")}


def saved(kind: str, folder: Path) -> tuple[Any, Path]:
    """A folder whose blocks have heavier and heavier tails, so that their densities differ."""
    model: Any = network(kind)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for i, block in enumerate(prunus.engine.walk.blocks_in(model).values()):
            for p in block.parameters():
                if p.ndim > 1:
                    p *= (torch.randn(p.shape, generator=draw) * (0.2 + 0.4 * i)).exp().to(p.dtype)
    model.save_pretrained(folder, max_shard_size="20KB")
    return read(type(model), folder), folder


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*c, marks=() if c in OFTEN else pytest.mark.slow) for c in CASES]
)
@pytest.mark.filterwarnings("ignore::prunus.core.errors.PrunusWarning")
def test_streamed_is_in_memory(name: str, kind: str, tmp_path: Path) -> None:
    model, folder = saved(kind, tmp_path / "dense")
    batches, recipe = batches_for(kind), RECIPES[name]
    budget = None if name == "mixed 8" else 0.6
    result = prunus.prune(model, Task(calib=batches), recipe, sparsity=budget)
    seen: list[tuple[int, int]] = []
    streamed = prune_folder(
        folder, tmp_path / "out", recipe, batches, sparsity=budget, on_block=lambda i, n, _: seen.append((i, n))
    )
    assert same(result.model, read(type(model), tmp_path / "out"))
    shares = {b.name: sum(b.kept.values()) / sum(b.units.values()) for b in streamed.blocks}
    assert max(shares.values()) - min(shares.values()) > 0.05
    every = 2 * len(shares)
    assert seen == [(i, every) for i in range(1, every + 1)]
    assert streamed.recipe == replace(recipe, sweep="blocks")
    inside = sum(e.size for n, e in Checkpoint(folder).entries.items() if n.startswith(tuple(f"{b}." for b in shares)))
    assert 2 * inside <= streamed.read  # the blocks are read twice


def stopping(at: int) -> Any:
    def stop(done: int, _all: int, _record: Any) -> None:
        if done == at:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("at", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_a_stopped_run_goes_on_and_ends_the_same(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pass ahead, at its end, and after it: what was gathered is not gathered again."""
    _, folder = saved("llama", tmp_path / "dense")
    arguments: Any = {"recipe": OWL, "batches": batches_for("llama"), "sparsity": 0.6}
    prune_folder(folder, tmp_path / "whole", **arguments)
    with pytest.raises(KeyboardInterrupt):
        prune_folder(folder, tmp_path / "out", **arguments, on_block=stopping(at))
    part = tmp_path / ".out.unfinished"
    state = json.loads((part / "state.json").read_text())
    assert len(state["foreseen"]) == min(at, 3) and len(state["done"]) == max(0, at - 3)
    with pytest.raises(SpecError, match="another model, recipe, budget"):
        prune_folder(folder, tmp_path / "out", **{**arguments, "recipe": RECIPES["alpha_pruning"]}, resume=True)
    number = state["foreseen"]["model.layers.0"]["layers"]
    state["foreseen"]["model.layers.0"]["layers"] = {n: v + 0.5 for n, v in number.items()}
    text = (part / "state.json").read_text()
    (part / "state.json").write_text(json.dumps(state))
    with pytest.raises(SpecError, match=r"the numbers in .* are not what the unfinished run wrote"):
        prune_folder(folder, tmp_path / "out", **arguments, resume=True)
    (part / "state.json").write_text(text)
    gathered: list[str] = []
    told = prunus.stream.ahead._numbers
    monkeypatch.setattr("prunus.stream.ahead._numbers", lambda *a: gathered.append(a[2]) or told(*a))
    streamed = prune_folder(folder, tmp_path / "out", **arguments, resume=True)
    assert gathered == [f"model.layers.{i}" for i in range(at, 3)]
    assert streamed.resumed == max(0, at - 3) and files(tmp_path / "out") == files(tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}]
from tests import conftest  # what lets transformers be imported beside this torch
from tests.stream.test_folder import batches_for
from prunus.stream import prune_folder
prune_folder({folder!r}, {out!r}, "owl", batches_for("llama"), sparsity=0.6,
             on_block=lambda done, n, b: done == 2 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
def test_a_killed_pass_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    arguments: Any = ("owl", batches_for("llama"))
    prune_folder(folder, tmp_path / "whole", *arguments, sparsity=0.6)
    code = KILLED.format(root=str(ROOT), folder=str(folder), out=str(tmp_path / "out"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
    assert run.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    prune_folder(folder, tmp_path / "out", *arguments, sparsity=0.6, resume=True)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_pass_that_stops_in_its_first_block_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved("llama", tmp_path / "dense")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunus.stream.ahead._numbers", fail)
    with pytest.raises(KeyboardInterrupt):
        prune_folder(folder, tmp_path / "out", "owl", batches_for("llama"), sparsity=0.6)
    assert [p.name for p in tmp_path.iterdir()] == ["dense"]


@pytest.mark.filterwarnings("ignore::prunus.core.errors.PrunusWarning")
@pytest.mark.parametrize("method", ["wanda", "owl"])
def test_layers_are_named_as_the_model_names_them(method: str, tmp_path: Path) -> None:
    """Exclusions, the last layer and densities that are written down: what they say of the model is said of blocks."""
    model, folder = saved("llama", tmp_path / "dense")
    recipe = prunus.methods.get(method)
    if method == "wanda":
        names = [n for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
        shares = tuple(0.2 + 0.02 * i for i in range(len(names)))
        recipe = replace(recipe, allocate=PerLayer(Uniform(within="row"), tuple(names), shares))
    units = Element(exclude=("model.layers.1.*", "*.layers.0.mlp.up_proj", "mlp.gate_proj"), skip_last=True)
    recipe = replace(recipe, granularity=units)
    result = prunus.prune(model, Task(calib=batches_for("llama")), recipe, sparsity=0.6)
    streamed = prune_folder(folder, tmp_path / "out", recipe, batches_for("llama"), sparsity=0.6)
    assert same(result.model, read(type(model), tmp_path / "out"))
    assert [len(b.units) for b in streamed.blocks] == [6, 0, 7]
    assert settled.__module__ == "prunus.stream.ahead"


def test_a_loss_needs_labels(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    with pytest.raises(SpecError, match="every batch is a dict with labels"):
        prune_folder(folder, tmp_path / "out", "ecoflap", batches_for("llama"), sparsity=0.5)
    _, folder = saved("bert", tmp_path / "base")
    batches = [b | {"labels": b["input_ids"]} for b in batches_for("bert")]
    with pytest.raises(DataError, match="loss failed"):
        prune_folder(folder, tmp_path / "out", "ecoflap", batches, sparsity=0.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "dense"]


@pytest.mark.filterwarnings("ignore::prunus.core.errors.PrunusWarning")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        pytest.param("t5", {"draws": 2, "weighted": True}, marks=pytest.mark.slow),
        pytest.param("mixtral", {"per": "layer"}, marks=pytest.mark.slow),
        pytest.param("gemma3", {}, marks=pytest.mark.slow),
    ],
)
def test_what_the_loss_says_is_what_it_says_in_memory(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight is moved in a pass through the folder as in the model, along the same directions; in files, too."""
    dealt, known = ForwardDifferenceEvidence.dealt, dict[str, float]()

    def noted(self: Any, sources: Any, slopes: Any) -> Any:
        found = dealt(self, sources, slopes)
        known.update({n: float(v) for n, v in found.items() if n not in known})
        return found

    monkeypatch.setattr(ForwardDifferenceEvidence, "dealt", noted)
    model, folder = saved(kind, tmp_path / "dense")
    batches = [b | {"labels": b["input_ids"]} for b in batches_for(kind)][:2]
    recipe = replace(prunus.methods.get("ecoflap"), allocate=ForwardDensities(**options))
    task = Task(calib=batches, loss=lambda m, b: m(**b).loss)
    result = prunus.prune(model, task, recipe, sparsity=0.6)
    with pytest.raises(KeyboardInterrupt):
        prune_folder(folder, tmp_path / "out", recipe, batches, sparsity=0.6, on_block=stopping(1))
    ((block, told),) = json.loads((tmp_path / ".out.unfinished" / "state.json").read_text())["foreseen"].items()
    assert {f"{block}.{n}": v for n, v in told["layers"].items()} == {
        n: v for n, v in known.items() if n.startswith(f"{block}.")
    }
    streamed = prune_folder(folder, tmp_path / "out", recipe, batches, sparsity=0.6, memory=0, resume=True)
    assert same(result.model, read(type(model), tmp_path / "out"))
    shares = [sum(b.kept.values()) / sum(b.units.values()) for b in streamed.blocks]
    assert max(shares) - min(shares) > 0.02
