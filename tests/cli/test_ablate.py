"""`prunus prune --ablate`: a method without what should matter in it, as one word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunus.cli.app import app

PRUNE = ("prune", "mlp", "-d", "digits", "-m", "snip", "--sparsity", "0.8")


def run(*args: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, [str(a) for a in (*PRUNE, *args)], env={"COLUMNS": "140"})
    assert found.exit_code == code, found.output
    return found.stdout if code == 0 else found.output


@pytest.mark.parametrize("what", ["shuffle", "reinit", "invert"])
def test_an_ablation_is_one_word(what: str) -> None:
    plan = json.loads(run("--ablate", what, "--dry-run", "--json"))
    plain = json.loads(run("--dry-run", "--json"))
    assert plan["method"] == f"snip_{what}"
    same = [g["keep"] for g in plan["groups"]] == [g["keep"] for g in plain["groups"]]
    assert same == (what != "invert")


def test_an_ablated_network_is_written(tmp_path: Path) -> None:
    report = json.loads(run("--ablate", "shuffle", "-o", tmp_path / "out", "--json"))
    assert (tmp_path / "out").is_dir() and report["methods"]


def test_what_cannot_be_ablated_is_said() -> None:
    assert "shuffle" in run("--ablate", "scramble", "--dry-run", code=2)
