"""`prunus inspect`: the tree, the reasons and the pictures of real networks, as a user calls it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from prunus.cli.app import app
from prunus.cli.inspect_ import inspected
from prunus.cli.networks import Built

torch.set_num_threads(1)


def call(*args: object, code: int = 0) -> Result:
    found = CliRunner().invoke(app, ["inspect", *map(str, args)], env={"COLUMNS": "140"})
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return found


def told(*args: object) -> Any:
    return json.loads(call(*args, "--json").stdout)


def test_the_json_carries_groups_ties_and_links() -> None:
    found = told("resnet8")
    assert set(found) == {"network", "totals", "layers", "groups", "frozen", "links"}
    stream = found["groups"][0]
    assert set(stream) == {
        "name", "units", "kind", "params", "macs", "multiple", "at_least", "like", "members", "integers", "ties",
    }  # fmt: skip
    assert {m["param"] for m in stream["members"] if m["role"] == "out"} >= {"conv1.weight", "stages.0.0.conv2.weight"}
    assert {"from": {"param": "conv1.weight", "axis": 0}, "to": {"param": "stages.0.0.conv2.weight", "axis": 0},
            "operation": "add in stages.0.0"} in stream["ties"]  # fmt: skip
    assert all(set(link) == {"one", "other", "operation"} for link in found["links"])
    assert 0 < stream["params"] < found["totals"]["params"] and 0 < stream["macs"] < found["totals"]["macs"]
    assert {"reason": "an output of the model", "weights": ["fc.weight"]} in found["frozen"]


def test_the_tree_says_who_produces_reads_and_follows() -> None:
    text = " ".join(call("resnet8").stdout.split())
    assert "governs" in text and "produced by" in text and "read by" in text and "followed by" in text
    assert "stages.0.0.conv2.weight axis 0 by add in stages.0.0, with conv1.weight" in text
    assert "repairs the integer stages.1.0.shortcut." in text
    assert "1 weight whose output stays whole" in text
    short = call("resnet8", "--no-members").stdout
    assert "produced by conv1, stages.0.0.conv2" in short and "axis" not in short.partition("groups")[2].split("A w")[0]


def test_layers_that_repeat_are_told_once() -> None:
    text = " ".join(call("vit_tiny_cifar").stdout.split())
    assert "x 6 like this" in text and "blocks.{0-5}.mlp.up" in text
    assert "blocks.{0-5}.mlp.down.weight" in text and "blocks.3" not in text.partition("groups of units")[2]
    groups = told("vit_tiny_cifar")["groups"]
    assert {g["like"] for g in groups if g["name"].endswith("mlp.up")} == {"blocks.0.mlp.up"}


def test_why_prints_the_chain_between_two_weights() -> None:
    text = " ".join(call("resnet8", "--why", "conv1", "--why", "stages.1.0.bn2").stdout.split())
    assert (
        text.index("add in stages.0.0") < text.index("add in stages.1.0") < text.index("batch norm in stages.1.0.bn2")
    )
    found = told("resnet8", "--why", "conv1", "--why", "stages.1.0.conv2")
    (chain,) = [c for c in found["chains"] if c["group"] == "conv1"]
    assert [t["operation"] for t in chain["ties"]] == ["add in stages.0.0", "add in stages.1.0"]
    assert found["frozen"] == {"conv1.weight": None, "stages.1.0.conv2.weight": None}
    apart = call("resnet8", "--why", "stages.0.0.bn1", "--why", "stages.1.0.bn1").stdout
    assert "are not coupled" in apart and "stages.0.0.conv1" in apart


def test_why_says_for_one_weight_where_it_hangs_and_what_freezes_it() -> None:
    text = call("resnet8", "--why", "fc").stdout
    assert "matrix product in fc" in text and "stays whole along its output" in text
    assert "an output of the model" in text
    assert "this is where the group starts" in call("resnet8", "--why", "conv1.weight").stdout
    bias = told("mlp")["frozen"][0]["weights"][0].replace("weight", "bias")
    text = " ".join(call("mlp", "--why", bias).stdout.split())
    assert f"{bias} is in no group" in text and "both stay whole" in text and "an output of the model" in text


def test_a_picture_is_written_beside_the_tree(tmp_path: Path) -> None:
    svg, page = tmp_path / "net.svg", tmp_path / "deep" / "net.html"
    found = call("resnet8", "--picture", svg, "--json")
    assert json.loads(found.stdout)["network"] == "resnet8" and "written" in found.stderr
    assert ElementTree.fromstring(svg.read_bytes()).tag.endswith("svg")
    call("mlp", "--picture", page)
    assert page.read_text().startswith("<!doctype html>") and "mlp" in page.read_text()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "net.html", "net.svg"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--picture", "net.png"), "must end in .html or .svg"),
        (("--picture", "folder.svg"), "is a folder"),
        (("--why", "no_such_layer"), "unknown parameter"),
        (("--why", "a", "--why", "b", "--why", "c"), "given 3 times"),
    ],
)
def test_wrong_use_is_said_and_nothing_is_written(
    args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    assert message in " ".join(call("mlp", *args, code=2).stderr.split())
    assert [p.name for p in tmp_path.iterdir()] == ["folder.svg"]


def test_a_dry_run_draws_nothing(tmp_path: Path) -> None:
    assert str(tmp_path / "net.svg") in call("mlp", "--picture", tmp_path / "net.svg", "--dry-run").stdout
    assert told("mlp", "--picture", tmp_path / "net.svg", "--dry-run")["picture"] == str(tmp_path / "net.svg")
    assert list(tmp_path.iterdir()) == []


class _Backwards(nn.Module):
    """Runs its layers against the order in which it made them; `tail` is used by a module that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 2)
        self.tail = nn.Linear(2, 2)
        self.first = nn.Linear(3, 6)
        self.table = nn.Parameter(torch.ones(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(x * self.table))
        return nn.functional.linear(y, self.tail.weight)


def test_weights_stand_in_the_order_in_which_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Backwards().eval()
    monkeypatch.setattr(Built, "model", lambda self: model)
    found = inspected(Built("mlp", {}), "1,3")
    names = [w.name for w in found.weights if len(w.shape) == 2]
    assert names.index("table") < names.index("first.weight") < names.index("last.weight")
    assert not any(module._forward_pre_hooks for module in model.modules())
