"""Plans of folders: what they say is what the folder has and what a run reads, writes and keeps waiting."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import prunus
from prunus.cli.app import app
from prunus.core.errors import SpecError
from prunus.parts.allocation import NofM
from prunus.parts.reconstruct import ObsUpdate
from prunus.stream import prune_folder, shelf
from prunus.stream.plan import Rates, lines, measured_rates, plan
from prunus.stream.shards import INDEX, Checkpoint
from tests.stream.test_folder import batches_for, saved

RATES = Rates(forward=2.0, wide=3.0, solve=5.0, select=7.0, disk=11.0)


def test_a_plan_needs_no_weights_and_is_right_about_them(tmp_path: Path) -> None:
    model, folder = saved("tied bf16", tmp_path / "dense")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((folder / "config.json").read_bytes())
    stored = Checkpoint(folder).bytes
    (bare / INDEX).write_text(json.dumps({"metadata": {"total_size": stored}, "weight_map": {}}))
    found = plan(bare, "wanda", samples=6, length=12, rates=RATES)
    assert found.to_dict() | {"model": ""} == plan(folder, "wanda", samples=6, length=12, rates=RATES).to_dict() | {
        "model": ""
    }
    made = prune_folder(folder, tmp_path / "out", "wanda", batches_for("tied bf16"), sparsity=0.5)
    assert (found.bytes, found.blocks) == (stored, len(made.blocks)) and made.written == stored
    block = model.model.layers[0]
    assert found.block == sum(2 * p.numel() for p in block.parameters())
    assert found.waiting == 6 * 12 * 24 * 2 and found.bound == 3 * found.block + found.waiting
    matrices = sum(p.numel() for p in block.parameters() if p.ndim == 2)
    attention = 4 * 72 * 12 * 24
    assert found.forward == 2 * 3 * (2 * 72 * matrices + attention)  # scored, and run once more; three blocks
    assert found.seconds == {
        "forward": found.forward / 2,
        "moments": 0.0,
        "solve": 0.0,
        "choose": 3 * matrices / 7,
        "disk": 2 * stored / 11,
    }


def test_surgeon_and_experts(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    found = plan(folder, "sparsegpt", samples=6, length=12, rates=RATES)
    # Queries, keys and values share a sum, gate and up do, the other two have their own.
    assert found.moments == pytest.approx(3 * 2 * 72 * (3 * 24**2 + 40**2))
    each = [(24, 24), (12, 24), (12, 24), (24, 24), (40, 24), (40, 24), (24, 40)]
    shared = [3, 3, 3, 1, 2, 2, 1]
    assert found.solve == pytest.approx(
        3 * sum(i**3 / 3 / n + o * i * i for (o, i), n in zip(each, shared, strict=True))
    )
    # From the last to the first, none more than the largest: down; gate, up and the output; queries, keys and values.
    assert found.gram == {"block": 8 * (3 * 24**2 + 40**2), "wave": 8 * 40**2}
    alone = replace(prunus.methods.sparsegpt, reconstruct=ObsUpdate(fed="pruned"))
    in_turn = plan(folder, alone, samples=6, length=12, rates=RATES)
    assert in_turn.gram == found.gram
    sizes = [o * i for o, i in each]
    runs = 1 + 1 + sum(sizes[:-1]) / sum(sizes) + sum(sizes[:3]) / sum(sizes)
    assert in_turn.forward == pytest.approx(5 / runs * found.forward)
    _, folder = saved("mixtral", tmp_path / "experts")
    stacked = plan(folder, "sparsegpt", samples=6, length=12, rates=RATES)
    # Attention and the router, and twice four experts, of which the second ones come alone.
    assert stacked.gram == {"block": 8 * (3 * 24**2 + 4 * (24**2 + 40**2)), "wave": 8 * 4 * 40**2}
    pattern = replace(prunus.methods.sparsegpt, allocate=NofM(2, 4))
    unscored = plan(folder, pattern, samples=6, length=12, rates=RATES)
    assert unscored.peak < stacked.peak and unscored.forward < stacked.forward
    dense = plan(folder, "magnitude_uniform", samples=6, length=12, rates=RATES)
    assert dense.gram == {} and dense.peak < stacked.peak
    assert dict(lines(stacked))["method"] == "sparsegpt on 72 tokens"


def test_passes_ahead(tmp_path: Path) -> None:
    """They read as much more as they do, run the model as often as they do, and are told in the hours."""
    _, folder = saved("llama", tmp_path / "dense")
    block = 4 * (4 * 24 * 24 - 2 * 12 * 24 + 3 * 24 * 40 + 2 * 24)
    outside = Checkpoint(folder).bytes - 3 * block
    plain = plan(folder, "wanda", samples=6, length=12, rates=RATES)
    once, scored = plain.forward / 2, 3 * (4 * 24 * 24 - 2 * 12 * 24 + 3 * 24 * 40)
    values = 3 * (2 * (8 / 3 * 24**3) + 2 * (4 * 24 * 12**2 - 4 / 3 * 12**3) + 3 * (4 * 40 * 24**2 - 4 / 3 * 24**3))
    expected = {
        "owl": {"bytes": 3 * block, "forward": 2 * once, "spectra": 0, "scored": 2 * scored},
        "alpha_pruning": {"bytes": 3 * block, "forward": 0, "spectra": values, "scored": 0},
        "ecoflap": {"bytes": 9 * block, "forward": 3 * 14 * once, "spectra": 0, "scored": 0},
    }
    batches = [b | {"labels": b["input_ids"]} for b in batches_for("llama")]
    read = prune_folder(folder, tmp_path / "wanda", "wanda", batches, sparsity=0.5).read
    for name, ahead in expected.items():
        found = plan(folder, name, samples=6, length=12, rates=replace(RATES, spectra=13.0))
        assert found.ahead == pytest.approx(ahead)
        took = [ahead["forward"] / 2, ahead["spectra"] / 13, ahead["scored"] / 7, ahead["bytes"] / 11]
        assert found.seconds == pytest.approx(plain.seconds | {"ahead": sum(took)})
        assert found.waiting == plain.waiting * (14 if name == "ecoflap" else 1)
        passes = {"owl": 1, "alpha_pruning": 0, "ecoflap": 3}[name]  # in which what lies outside is read as well
        more = prune_folder(folder, tmp_path / name, name, batches[:1], sparsity=0.5).read - read
        assert more == ahead["bytes"] + passes * outside
        assert "more to read" in dict(lines(found))["a pass ahead"]


def test_gradients_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are read twice more; what the run lets wait is what the plan says, but for masks and rotary tables."""
    monkeypatch.setattr(shelf, "_SMALL", 0)
    _, folder = saved("llama", tmp_path / "dense")
    matrices = 4 * 24 * 24 - 2 * 12 * 24 + 3 * 24 * 40
    block = 4 * (matrices + 2 * 24)
    outside = Checkpoint(folder).bytes - 3 * block
    plain = plan(folder, "wanda", samples=6, length=12, rates=RATES)
    found = plan(folder, "gblm", samples=6, length=12, rates=RATES)
    once = plain.forward / 2
    lengths = 4 * 3 * matrices
    assert found.ahead == {"bytes": 6 * block, "forward": 4 * once, "spectra": 0, "scored": 0, "written": lengths}
    assert found.seconds["ahead"] == pytest.approx(4 * once / 2 + (6 * block + 2 * lengths) / 11)
    assert found.waiting == 5 * plain.waiting
    batches = [b | {"labels": b["input_ids"]} for b in batches_for("llama")]
    wanda = prune_folder(folder, tmp_path / "wanda", "wanda", batches, sparsity=0.5)
    made = prune_folder(folder, tmp_path / "gblm", "gblm", batches, sparsity=0.5)
    assert made.read - wanda.read == found.ahead["bytes"] + outside
    assert (
        made.activations == 4 * plain.waiting
    )  # what goes into the first block never waits, and is there all the time
    assert "for gradients" in dict(lines(found))["a pass ahead"]


def test_what_has_no_plan(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    for method in ("obc", "flap"):
        with pytest.raises(SpecError, match="is not known"):
            plan(folder, method, samples=1, length=1, rates=RATES)


def test_rates_are_measured(tmp_path: Path) -> None:
    found = measured_rates(torch.float32, tmp_path)
    assert min(found.forward, found.wide, found.solve, found.select, found.disk) > 1e6


def test_the_command_says_it(tmp_path: Path) -> None:
    _, folder = saved("llama", tmp_path / "dense")
    asked = ["plan", f"hf:{folder}", "-m", "sparsegpt", "--samples", "6", "--length", "12", "--flops", "1e12"]
    told = json.loads(CliRunner().invoke(app, [*asked, "--disk", "2e9", "--json"]).stdout)
    rates = Rates(1e12, 1e12, 1e12, disk=2e9, told=told["rates"]["told"])
    assert told == plan(folder, "sparsegpt", samples=6, length=12, rates=rates).to_dict()
    assert "read and written" in CliRunner().invoke(app, asked).stdout
    of_four = json.loads(CliRunner().invoke(app, [*asked, "--sparsity", "2:4", "--json"]).stdout)
    assert of_four["peak"] == told["peak"]  # nothing is scored either way
    for wrong in (["plan", "mlp", "-m", "wanda"], ["plan", f"hf:{folder}", "-m", "legr"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
