"""`prunus deploy`, `prunus export` and `prunus prune --for`, on a small network."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import prunus
from prunus.lab import zoo
from tests.cli.test_commands import call, told


def saved(path: Path, method: str = "l1_filter") -> Path:
    """A folder with half of an untrained network."""
    model = zoo.build("mlp").eval()
    example = zoo.example_inputs("mlp", batch=1)
    notes = {"network": "mlp", "options": {}, "input": list(example[0].shape)}
    result = prunus.prune(model, prunus.Task(example=example), method, sparsity=0.5)
    return prunus.save(result, path, notes=notes)


QUICK = ("--runtime", "eager", "--threads", 1, "--runs", 30)


def test_a_folder_is_run_beside_the_network_it_was_saved_from(tmp_path: Path) -> None:
    folder = saved(tmp_path / "small")
    found = told("deploy", folder, *QUICK, "--batch", 3)
    (row,) = found["rows"]
    assert row["runtime"] == "eager" and row["batch"] == found["batch"] == 3 and row["threads"] == 1
    assert found["left"]["macs_ratio"] > 1.5 and row["pruned"]["bytes"] < row["dense"]["bytes"]
    assert row["efficiency"] == pytest.approx(row["ratio"]["median"] / found["left"]["macs_ratio"])
    assert "of the MACs" in found["says"][0] and found["machine"]["cores"] >= 1


def test_it_is_shown_as_a_table_and_written_as_a_page(tmp_path: Path) -> None:
    folder = saved(tmp_path / "zeros", "magnitude")
    shown = call("deploy", folder, *QUICK, "--out", tmp_path / "d.html")
    assert "eager" in shown.stdout and "efficiency" in shown.stdout
    # What nothing turns into speed is said before the fastest is.
    assert shown.stdout.index("nothing that ran here skips them") < shown.stdout.index("Fastest:")
    assert "nothing that ran here skips them" in (tmp_path / "d.html").read_text()
    rows = call("deploy", folder, *QUICK, "--out", tmp_path / "d.csv") and (tmp_path / "d.csv").read_text().splitlines()
    assert rows[0].startswith("runtime,") and rows[1].startswith("eager,")


def test_wrong_use_is_said_before_anything_runs(tmp_path: Path) -> None:
    folder = saved(tmp_path / "small")
    assert "--dense" in call("deploy", "mlp", code=2).stderr
    assert "unknown runtime" in call("deploy", folder, "--runtime", "tpu", code=2).stderr
    assert "int8 or bf16" in call("deploy", folder, "--quantize", "int4", code=2).stderr
    assert "no picture" in call("deploy", folder, "--out", tmp_path / "d.svg", code=2).stderr
    plan = told("deploy", folder, "--runtime", "eager", "--dry-run")
    assert plan["dry_run"] and plan["runtimes"] == ["eager"]


def test_a_network_is_written_as_a_file(tmp_path: Path) -> None:
    folder, file = saved(tmp_path / "small"), tmp_path / "m.pt2"
    done = told("export", folder, "--to", "torch", "--batch", 2, "--out", file)
    assert done["files"] == [str(file)] and done["error"] < 1e-6 and done["bytes"] == file.stat().st_size
    (x,) = zoo.example_inputs("mlp", batch=2)
    small = prunus.load(folder, lambda: zoo.build("mlp"))
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(str(file)).module()(x), small(x))
    assert "written:" in call("export", folder, "--to", "torch", "--out", file).stderr
    assert "unknown kind of file" in call("export", folder, "--to", "tflite", code=2).stderr
    assert told("export", folder, "--to", "onnx", "--out", tmp_path / "n.onnx", "--dry-run")["to"] == "onnx"
    assert not (tmp_path / "n.onnx").exists()


def test_a_folder_is_unpacked_for_other_tools(tmp_path: Path) -> None:
    folder, out = saved(tmp_path / "zeros", "magnitude"), tmp_path / "dense"
    plan = told("unpack", folder, "-o", out, "--dry-run")
    assert plan["dry_run"] and plan["packed"] == 3 and plan["before"] < plan["after"] and not out.exists()
    done = told("unpack", folder, "-o", out)
    assert {k: done[k] for k in ("packed", "before", "after", "tensors")} == {k: plan[k] for k in done if k != "folder"}
    own = prunus.load(folder, lambda: zoo.build("mlp")).state_dict()
    read = safetensors.torch.load_file(out / "model.safetensors")
    assert own.keys() == read.keys() and all(torch.equal(own[n], t) for n, t in read.items())
    assert sum(t.nbytes for t in read.values()) == done["after"]
    assert "3 of 6 tensors were packed" in call("unpack", folder, "-o", out).stdout


def test_unpacking_refuses_what_is_no_folder_of_ours_and_what_is_in_the_way(tmp_path: Path) -> None:
    folder = saved(tmp_path / "zeros", "magnitude")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    call("unpack", folder, "-o", tmp_path / "mine", code=2)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    assert "pruning.json" in call("unpack", tmp_path / "mine", "-o", tmp_path / "out", code=2).stderr
    assert "more than the" in call("unpack", folder, "-o", tmp_path / "out", "--limit", 1e-6, code=1).stderr
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    call("unpack", folder, "-o", tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()


def test_counts_are_rounded_for_a_target() -> None:
    asked = ("prune", "mlp", "-d", "digits", "-m", "l1_filter", "--sparsity", 0.3, "--dry-run")
    free = told(*asked)["groups"]
    rounded = told(*asked, "--for", "onnx")["groups"]
    assert all(g["keep"] % 4 == 0 for g in rounded) and any(g["keep"] % 4 for g in free)
    assert all(g["keep"] % 16 == 0 for g in rounded if g["units"] >= 32)
    own = told(*asked, "--for", "onnx", "--unit-option", "round_to=7")["groups"]
    assert all(g["keep"] % 7 == 0 or g["keep"] == g["units"] for g in own)


def test_what_has_no_counts_is_said_so() -> None:
    refusal = call("prune", "mlp", "-m", "magnitude", "--sparsity", 0.9, "--for", "onnx", "--dry-run", code=2).stderr
    assert "removes no channels" in refusal and "structured" in refusal
    assert "unknown target" in call("prune", "mlp", "-m", "l1_filter", "--macs", 0.5, "--for", "tpu", code=2).stderr
