"""What `prune`, `compare` and `quickstart` leave on the disk, and what they do when they are called again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import prunus
from prunus.cli.networks import Built, example_for
from prunus.core.errors import PrunusError
from prunus.lab import data, experiment, presets, quickstart, series, zoo
from prunus.report import Report
from tests.cli.test_commands import PRUNE, call, told

ROOT = Path(__file__).parents[2]
SAVED = {"model.safetensors", "masks.safetensors", "pruning.json", "report.html", "report.md", "report.json"}


def test_prune_writes_a_folder_that_can_be_loaded_measured_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    found = call(*PRUNE, "-m", "l1_filter", "--macs", 0.5, "--steps", 10, "--seed", 5, "-o", out, "--json")
    report = Report.from_json(found.stdout)
    assert report == Report.from_json((out / "report.json").read_text())
    assert (
        {p.name for p in out.iterdir()} == SAVED and os.listdir(tmp_path) == ["a"] and os.listdir(out.parent) == ["b"]
    )
    (record,) = report.methods
    assert record.macs_dense is not None and record.macs_kept is not None and record.macs_kept <= record.macs_dense / 2
    assert record.bytes_kept == (out / "model.safetensors").stat().st_size < record.bytes_dense
    assert record.latency is not None and record.verified_error is not None and record.steps == 10
    model = prunus.load(out, lambda: zoo.build("mlp"))
    x = data.load("digits").test
    accuracy = float((model(x.inputs(x.x)).argmax(1) == x.y).double().mean())
    assert accuracy == pytest.approx(record.accuracy_after, abs=1e-9)
    measured = told("measure", out, "--runs", 30)
    assert measured["params"]["nonzero"] == record.params_kept and measured["macs"]["total"] == record.macs_kept
    assert told("measure", "mlp", "-c", out, "--runs", 30)["params"] == measured["params"]
    assert told("inspect", out)["totals"]["params"] == measured["params"]["total"]

    # A compact network is not the dense one with other values: saying so beats a list of shapes.
    refusal = call(*PRUNE, "--sparsity", 0.5, "-c", out, "-o", tmp_path / "again", code=2).stderr
    assert "physically smaller" in refusal and "prunus.load" in refusal
    assert "holds a mlp, not a lenet300" in call("measure", "lenet300", "-c", out, code=2).stderr
    assert "num_classes=10, not 3" in call("measure", out, "--classes", 3, code=2).stderr
    call(*PRUNE, "--sparsity", 0.9, "-o", out)
    assert {p.name for p in out.iterdir()} == SAVED and "magnitude" in (out / "pruning.json").read_text()
    # Masked, but of the dense shape: this can be pruned on, and starts from these weights.
    told(*PRUNE, "-m", "magnitude", "--sparsity", 0.95, "-c", out, "-o", tmp_path / "again")
    first = prunus.load(out, lambda: zoo.build("mlp")).state_dict()
    second = prunus.load(tmp_path / "again", lambda: zoo.build("mlp")).state_dict()
    assert all(torch.equal(t[t != 0], first[n][t != 0]) for n, t in second.items())


def test_a_folder_cannot_choose_what_code_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "from torch import nn\ndef net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (tmp_path / "mine_for_cli_tests.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    call("prune", "mine_for_cli_tests:net", "-d", "digits", "--sparsity", 0.5, "-o", tmp_path / "x")
    assert "does not say which network" in call("measure", tmp_path / "x", code=2).stderr
    found = told("measure", "mine_for_cli_tests:net", "-c", tmp_path / "x", "--runs", 30)
    assert found["params"] == {"total": 650, "nonzero": 330} | {
        k: v for k, v in found["params"].items() if k not in ("total", "nonzero")
    }


def test_text_models_are_pruned_on_text(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(12):
        (text / f"{i}.py").write_text(f"x = {i}\n" * 200)
    out = tmp_path / "x"
    args = ("prune", "gpt_tiny", "-d", text, "-m", "l1_filter", "--sparsity", 0.5, "--batch-size", 8)
    report = told(*args, "--steps", 2, "-o", out)
    assert report["dataset"]["input"] == "64 tokens" and report["methods"][0]["compacted"]
    loaded = prunus.load(out, lambda: zoo.build("gpt_tiny"))
    assert loaded(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 256)
    assert "takes images" in call("prune", "resnet8", "-d", text, "--sparsity", 0.5, code=2).stderr


def test_a_comparison_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = series.run

    def counted(setup: Any, recipe: Any, *args: Any, **kwargs: Any) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(recipe.name)
        return run(setup, recipe, *args, **kwargs)

    args = ("compare", "mlp", "-d", "digits", "-m", "snip,l1_filter", "-s", "0.5", "--steps", 3, "-o", tmp_path / "c")
    monkeypatch.setattr(series, "run", counted)
    assert "interrupted" in call(*args, code=130).stderr
    assert ran == ["snip", "l1_filter"] and not (tmp_path / "c" / "report.html").exists()
    ran.clear()
    monkeypatch.setattr(series, "run", lambda s, r, *a, **k: (ran.append(r.name), run(s, r, *a, **k))[1])
    report = told(*args)
    assert ran == ["random", "random_channel"]
    assert [m["name"] for m in report["methods"]] == ["snip", "l1_filter", "random", "random_channel"]
    assert [c["name"] for c in report["curves"]] == ["snip", "l1_filter", "random", "random_channel"]
    assert len({m["title"] for m in report["methods"]}) == 4
    ran.clear()
    again = call(*args)
    assert not ran and again.stderr.count("already done") == 4
    # Another seed is another experiment, and a damaged model is made again.
    call(*args, "--seed", 1, "--no-baseline")
    assert ran == ["snip", "l1_filter"]
    ran.clear()
    damaged = next((tmp_path / "c" / "models").glob("random-*/model.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    call(*args)
    assert ran == ["snip", "l1_filter", "random"]
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"models", "report.html", "report.md", "report.json"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quickstart of seconds: the same steps with the smallest network, on digits."""
    small = replace(
        presets.QUICKSTART["digits"], network="resnet8", options=MappingProxyType({"width": 0.25}), epochs=2
    )
    monkeypatch.setattr(quickstart, "QUICKSTART", {"digits": small})
    monkeypatch.setattr(quickstart, "run_series", lambda *a, **k: series.run_series(*a, **k, runs=30))


@pytest.mark.e2e
@pytest.mark.usefixtures("tiny")
def test_the_quickstart_is_resumed_and_then_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "q"
    ran: list[str] = []
    run = series.run

    def counted(setup: Any, recipe: Any, *args: Any, **kwargs: Any) -> Any:
        if recipe.name == "l1_filter" and "l1_filter" not in ran:
            ran.append(recipe.name)
            raise KeyboardInterrupt
        ran.append(recipe.name)
        return run(setup, recipe, *args, **kwargs)

    monkeypatch.setattr(series, "run", counted)
    stopped = call("quickstart", "--data", "digits", "-o", out, code=130)
    assert "goes on from there" in stopped.stderr and not (out / "report.html").exists()
    assert ran == ["magnitude", "n_of_m", "l1_filter"]
    ran.clear()
    ran.append("l1_filter")
    resumed = call("quickstart", "--data", "digits", "-o", out, "--json")
    assert ran == ["l1_filter", "l1_filter", "snip"] and "verified checkpoint" in resumed.stderr
    report = Report.from_json(resumed.stdout)
    assert [m.name for m in report.methods] == ["magnitude", "n_of_m", "l1_filter", "snip"]
    assert report.methods[2].compacted and report.methods[2].latency is not None and len(report.curves) >= 4
    page = (out / "report.html").read_text()
    assert "<svg" in page and 'src="http' not in page and "Prunus quickstart" in page
    ran.clear()
    before = {p: p.stat().st_mtime_ns for p in (out / "models").glob("*/*")}
    call("quickstart", "--data", "digits", "-o", out)
    assert not ran and before == {p: p.stat().st_mtime_ns for p in (out / "models").glob("*/*")}
    # The models that it left can be measured by their folder alone.
    folder = next(p for p in (out / "models").iterdir() if p.is_dir() and p.name.startswith("l1_filter"))
    measured = told("measure", folder, "--runs", 30)
    assert measured["macs"]["total"] == report.methods[2].macs_kept
    # And the dense network is where other commands can start from.
    dense = ("-c", out / "models" / "dense.safetensors", "-d", "digits", "-o", tmp_path / "more")
    more = told("prune", "resnet8", "-O", "width=0.25", *dense, "--sparsity", 0.5)
    assert more["methods"][0]["accuracy_before"] == report.methods[0].accuracy_before
    (out / "thesis.tex").write_text("mine")
    assert "by hand" in call("quickstart", "--data", "digits", "-o", out, "--fresh", code=2).stderr
    assert (out / "thesis.tex").exists() and (out / "report.html").exists()


def test_a_full_disk_leaves_no_half_written_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.deploy.test_atomic import full_disk

    timed = experiment.timed
    with full_disk(20_000):
        found = call(*PRUNE, "--sparsity", 0.5, "-o", tmp_path / "x", code=1)
    assert "could not write" in found.stderr and not list(tmp_path.iterdir())
    assert experiment.timed is timed


@pytest.mark.e2e
def test_the_installed_command_keeps_data_and_messages_apart(tmp_path: Path) -> None:
    """One run as its own process: exit code, streams, and a reader that goes away."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    main = [sys.executable, "-c", "from prunus.cli import main; main()"]

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*main, *args], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    done = run("prune", "mlp", "-d", "digits", "--sparsity", "0.5", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["methods"] and "written" not in done.stdout
    assert os.listdir(tmp_path) == ["pruned"]
    wrong = run("prune", "mlp", "-m", "snpi", "-d", "digits")
    assert (wrong.returncode, wrong.stdout) == (2, "") and "snip" in wrong.stderr
    shell = f"{sys.executable} -c 'from prunus.cli import main; main()' methods --json | head -c 10"
    piped = subprocess.run(shell, shell=True, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert len(piped.stdout) == 10 and "Traceback" not in piped.stderr and "Exception" not in piped.stderr


@pytest.mark.parametrize(
    "note",
    [
        {"options": {"width": 300.0}},
        {"options": {"width": float("inf")}},
        {"options": {"num_classes": 10**13}},
        {"options": {"num_classes": -3}},
        {"options": {"num_classes": "many"}},
        {"options": {"in_channels": 10**9}},
        {"options": {"in_channels": 1, "size": 10**7}},
        {"input": [1, 1, 10**6, 10**6]},
        {"input": [10**40, 1, 1, 1]},
    ],
    ids=str,
)
def test_what_a_folder_says_of_its_network_is_not_believed(note: dict[str, Any], tmp_path: Path) -> None:
    """With digests that fit: no memory is taken, and a sentence says what is wrong."""
    network = "mlp" if "input" in note else "resnet20"
    model, example = zoo.build(network, width=0.25), zoo.example_inputs(network, batch=1)
    result = prunus.prune(model, prunus.Task(example=example), "magnitude", sparsity=0.5)
    # JSON has no infinity, but Python's reader takes one.
    saved = prunus.save(result, tmp_path / "saved", notes={"network": network, "options": {"width": 0.25}} | note)
    for text in ("Infinity",) if "inf" in str(note) else ():
        reseal(saved, '"width": null', f'"width": {text}')

    def made() -> None:
        built = Built(str(saved), {})
        built.dense()
        example_for(built, None)

    with pytest.raises(PrunusError) as caught:
        made()
    assert len(str(caught.value)) < 600


def reseal(folder: Path, old: str, new: str) -> None:
    """Replace text in a manifest, with a digest that fits."""
    file = folder / "pruning.json"
    text = file.read_text()
    assert old in text
    plain = text.replace(json.loads(text)["sha256"], "0" * 64).replace(old, new).encode()
    file.write_bytes(plain.replace(b"0" * 64, hashlib.sha256(plain).hexdigest().encode(), 1))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("export", "mlp", "--batch", 10**9), "bytes of memory are free"),
        (("export", "mlp", "--input", "1,1,100000,100000"), "bytes of memory are free"),
        (("measure", "resnet20", "--width", "1e300"), "there is no resnet20 with"),
        (("measure", "resnet20", "--classes", 10**10), "bytes of memory are free"),
        (("export", "mlp", "--checkpoint", "nowhere"), "there is no checkpoint at nowhere"),
    ],
    ids=str,
)
def test_sizes_that_fit_no_memory_are_refused_in_a_sentence(line: tuple[Any, ...], says: str) -> None:
    assert says in call(*line, code=2).stderr
