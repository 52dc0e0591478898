"""Every command as a user types it: what goes to stdout, what to stderr, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import prunus
from prunus.cli.app import app
from prunus.lab import zoo

COMMANDS = ("quickstart", "prune", "compare", "inspect", "methods", "measure", "perplexity", "evaluate")
PRUNE = ("prune", "mlp", "-d", "digits")


def call(*args: object, code: int = 0, env: dict[str, str] | None = None) -> Result:
    found = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "140", **(env or {})})
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return found


def told(*args: object, code: int = 0) -> Any:
    return json.loads(call(*args, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for `mlp`, as a safetensors file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "mlp.safetensors"
    save_file(zoo.build("mlp").state_dict(), file)
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_common_options(command: str) -> None:
    text = call(command, "--help").stdout
    assert all(option in text for option in ("--json", "--seed", "--dry-run"))


def test_no_arguments_is_help_and_version_is_a_line() -> None:
    assert all(c in CliRunner().invoke(app, []).output for c in COMMANDS)
    assert call("--version").stdout == f"prunus {prunus.__version__}\n"
    assert call("no-such-command", code=2)


DRY = [
    ("quickstart", "--data", "digits"),
    (*PRUNE, "--sparsity", "0.5"),
    (*PRUNE, "-m", "rigl", "--sparsity", "0.5", "--steps", "20"),
    ("compare", "mlp", "-d", "digits", "-m", "snip,n_of_m", "-s", "0.5,0.9"),
    ("inspect", "mlp"),
    ("methods",),
    ("methods", "snip"),
    ("measure", "mlp"),
]


@pytest.mark.parametrize("args", DRY, ids=lambda a: " ".join(a[:4]))
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(*args, "--dry-run", "--seed", 3)["dry_run"] is True
    assert "would" in call(*args, "--dry-run", "--seed", 3).stdout
    assert not list(tmp_path.iterdir())


def test_a_plan_names_groups_budget_and_costs() -> None:
    plan = told(*PRUNE, "-m", "l1_filter", "--macs", 0.5, "--dry-run")
    assert plan["budget"] == "0.5 of the macs" and 0.3 < plan["kept"]["macs"] <= 0.5
    assert all(0 < g["keep"] < g["units"] for g in plan["groups"])
    plan = told(*PRUNE, "-m", "l1_filter", "--bytes", 0.5, "--dry-run")
    assert plan["budget"] == "0.5 of the bytes" and 0.3 < plan["kept"]["bytes"] <= 0.5
    trials = told("compare", "mlp", "-d", "digits", "-m", "l1_filter", "--bytes", "0.5,0.3", "--dry-run")["trials"]
    assert [(t["method"], t["bytes"]) for t in trials] == [
        ("l1_filter", 0.5), ("l1_filter", 0.3), ("random_channel", 0.5), ("random_channel", 0.3),
    ]  # fmt: skip
    trials = told("compare", "mlp", "-d", "digits", "-m", "snip,n_of_m,l1_filter", "-s", "0.5,0.9", "--dry-run")[
        "trials"
    ]
    assert [(t["method"], t["sparsity"]) for t in trials] == [
        ("snip", 0.5), ("snip", 0.9), ("n_of_m", 0.5), ("l1_filter", 0.5), ("l1_filter", 0.9),
        ("random", 0.5), ("random", 0.9), ("random_channel", 0.5), ("random_channel", 0.9),
    ]  # fmt: skip


def test_methods_can_be_filtered_and_shown_whole() -> None:
    rows = told("methods", "--structure", "structured", "--when", "during")
    assert {r["name"] for r in rows} >= {"sfp", "network_slimming"}
    assert all(r["structure"] == "structured" and r["when"] == "during" for r in rows)
    assert set(rows[0]) >= {"name", "title", "source", "how", "pace", "scope", "data"}
    assert {r["name"] for r in told("methods")} == {*prunus.methods.names(), *prunus.methods.procedures()}
    table = call("methods").stdout
    assert all(name in table for name in prunus.methods.names())
    one = told("methods", "snip")
    assert set(one) == {"recipe", "taxonomy", "card", "page"} and one["taxonomy"]["when"] == "before"
    assert one["page"]["formula"].startswith("|g w|")
    known = next(n for n in prunus.methods.names() if prunus.methods.measured(n) is not None)
    assert told("methods", "show", known)["page"]["measured"]
    assert "Measured in this repository" in call("methods", "show", known).stdout
    assert prunus.Recipe.from_dict(one["recipe"]) == prunus.methods.get("snip")
    assert "ConnectionSensitivity" in call("methods", "snip").stdout
    assert call("methods", "show", "snip").stdout == call("methods", "snip").stdout
    assert "one method at a time" in call("methods", "snip", "grasp", code=2).stderr
    assert "takes the name of one method" in call("methods", "show", code=2).stderr
    assert "there are after, before, during" in call("methods", "--when", "never", code=2).stderr
    assert "one or the other" in call("methods", "snip", "--when", "after", code=2).stderr


def test_inspect_prints_layers_groups_and_what_stays_whole() -> None:
    found = told("inspect", "resnet8")
    assert found["totals"]["params"] == sum(p.numel() for p in zoo.build("resnet8").parameters())
    assert found["totals"]["groups"] == len(found["groups"]) > 0
    assert {"weight", "shape", "params", "macs", "frozen"} == set(found["layers"][0])
    assert next(layer for layer in found["layers"] if layer["weight"] == "fc.weight")["frozen"]
    text = call("inspect", "resnet8", "--no-members").stdout
    assert "conv1  16 channels" in text and "bn1.running_var" not in text
    assert "bn1.running_var axis 0" in call("inspect", "resnet8").stdout
    assert told("inspect", "resnet8", "--width", 0.5)["totals"]["params"] < found["totals"]["params"]
    assert told("inspect", "resnet8", "-O", "stem_stride=2")["totals"]["macs"] < found["totals"]["macs"]


def test_measure_counts_what_the_literature_counts() -> None:
    found = told("measure", "lenet300", "--runs", 30, "--threads", 1)
    assert found["params"]["total"] == 266_610 and found["macs"]["total"] == 266_200
    assert found["latency"]["threads"] == 1 and found["latency"]["runs"] >= 30
    text = call("measure", "gpt_tiny", "--batch", 2, "--input", "1,8").stdout
    assert "120,576" in text and "batch 2" in text and "quartiles" in text


MISUSE = [
    (("methods", "snpi"), "did you mean snip"),
    ((*PRUNE, "-m", "magnitud", "--sparsity", "0.5"), "did you mean magnitude"),
    (("inspect", "resnte20"), "did you mean resnet20"),
    (("measure", "no/such/folder"), "no folder that prunus wrote"),
    (("inspect", "no_such_package.module:factory"), "cannot be imported"),
    (("inspect", "mlp", "--input", "1,x"), "whole numbers"),
    (("inspect", "mlp", "--input", "1,3,9,9"), "does not take an input"),
    (("inspect", "mlp", "-O", "depth"), "NAME=VALUE"),
    (("inspect", "mlp", "-O", "depth=3"), "no option depth"),
    (("inspect", "mlp", "-c", "nowhere.safetensors"), "no checkpoint at"),
    (("inspect", "mlp", "-c", "weights.pth"), "is a pickle"),
    (("prune", "mlp", "--sparsity", "0.5"), "--data digits"),
    (PRUNE, "needs to know how much"),
    ((*PRUNE, "--sparsity", "1"), "outside [0, 1)"),
    ((*PRUNE, "--macs", "0"), "outside (0, 1]"),
    ((*PRUNE, "--macs", "0.5", "--params", "0.5"), "contradict"),
    ((*PRUNE, "--latency", "1.5"), "budget latency=1.5 is outside (0, 1]"),
    ((*PRUNE, "--latency", "0.5", "--bytes", "0.5"), "--bytes and --latency contradict"),
    ((*PRUNE, "--latency", "0.5"), "cannot be met by removing single weights"),
    (("compare", "mlp", "-d", "digits", "--bytes", "0.5"), "cannot be met by removing single weights"),
    (("compare", "mlp", "-d", "digits", "--bytes", "0.5", "--macs", "0.5"), "contradict"),
    (("compare", "mlp", "-d", "digits", "--macs", "0.5,x"), "--macs 0.5,x: give fractions"),
    ((*PRUNE, "--sparsity", "0.5", "--lr", "0"), "above 0"),
    (("prune", "mlp", "-d", "digts", "--sparsity", "0.5"), "did you mean digits"),
    (("prune", "gpt_tiny", "-d", "digits", "--sparsity", "0.5"), "takes text"),
    (("compare", "mlp", "-d", "digits", "-m", ","), "names no method"),
    (("compare", "mlp", "-d", "digits", "-s", "a"), "separated by commas"),
    (("compare", "mlp", "-d", "digits", "-s", ","), "no operating point"),
    (("compare", "mlp", "-d", "digits", "-s", "0.5,90"), "outside [0, 1)"),
    (("quickstart", "--data", "text"), "path"),
]


@pytest.mark.parametrize(("args", "sentence"), MISUSE, ids=lambda a: " ".join(a) if isinstance(a, tuple) else None)
def test_wrong_use_is_one_sentence_and_code_2(
    args: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = call(*args, code=2)
    assert found.stdout == "" and sentence in found.stderr
    assert found.stderr.startswith("error ") and "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())


def test_missing_data_says_where_it_looked(tmp_path: Path) -> None:
    found = call("prune", "resnet8", "-d", "cifar10", "--root", tmp_path, "--sparsity", 0.5, code=1)
    assert str(tmp_path) in found.stderr and "--download" in found.stderr


def test_weights_that_are_not_numbers_are_named(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(trained)
    name = next(n for n in state if n.endswith("weight"))
    state[name][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    for command in ((*PRUNE, "--sparsity", 0.5), ("compare", "mlp", "-d", "digits")):
        found = call(*command, "-c", tmp_path / "nan.safetensors", "-o", tmp_path / "out", code=1)
        assert name in found.stderr and "NaN" in found.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["nan.safetensors"]


def test_a_folder_may_be_called_like_a_pickle(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run.ckpt"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(trained.read_bytes())
    assert call("inspect", "mlp", "-c", folder).stdout == call("inspect", "mlp", "-c", trained).stdout


def test_a_checkpoint_of_another_network_is_refused_by_name(trained: Path) -> None:
    found = call("inspect", "lenet300", "-c", trained, code=2)
    assert "does not fit this network" in found.stderr and "weight" in found.stderr


@pytest.mark.parametrize("command", [(*PRUNE, "--sparsity", "0.5"), ("compare", "mlp", "-d", "digits")], ids=str)
def test_an_output_place_that_is_a_file_is_said_before_anything_is_done(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunus.lab import experiment

    monkeypatch.setattr(experiment, "run", lambda *_, **__: pytest.fail("it pruned first"))
    (tmp_path / "file").write_text("mine")
    assert "it is a file" in call(*command, "-o", tmp_path / "file" / "x", code=1).stderr
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_an_interruption_is_a_sentence_and_code_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prunus.lab import experiment

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", interrupt)
    found = call(*PRUNE, "--sparsity", 0.5, "-o", tmp_path / "x", code=130)
    assert "interrupted" in found.stderr and found.stdout == "" and not list(tmp_path.iterdir())


def test_options_are_read_from_the_environment() -> None:
    found = CliRunner().invoke(app, [*PRUNE, "--dry-run", "--json"], env={"PRUNUS_PRUNE_SPARSITY": "0.75"})
    assert found.exit_code == 0 and json.loads(found.stdout)["budget"] == "0.25 of the units"


def test_no_colour_codes_where_the_output_is_no_terminal() -> None:
    assert "\x1b" not in call("methods").output + call("inspect", "mlp").output + call("methods", "x", code=2).output
