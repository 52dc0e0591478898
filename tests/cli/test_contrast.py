"""prunus contrast and prunus runs, as a user types them: one small contrast, run once, looked at from all sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prunus.cli.app import app

OWN = ("--network", "mlp", "--data", "digits", "--images", 96, "--epochs", 1, "--lr", "0.1", "--batch-size", 32)
RUN = ("contrast", "run", "pattern", *OWN, "--seeds", 1)


def call(*args: object, code: int = 0) -> Result:
    found = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "160"})
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return found


def told(*args: object) -> Any:
    return json.loads(call(*args, "--json").stdout)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the runs of one contrast."""
    file = tmp_path_factory.mktemp("runs") / "runs.db"
    made = told(*RUN, "--store", file)
    assert made["runs"]["failed"] == 0 and made["runs"]["done"] > 10
    assert {v["verdict"] for v in made["verdicts"]["pattern"]} == {"too few runs"}
    return file


def test_contrasts_and_tiers_are_listed() -> None:
    text = call("contrast", "list").stdout
    assert "structure" in text and "desk-full" in text and "none for 7.7, static and dynamic pruning" in text
    found = told("contrast", "list")
    assert len(found["contrasts"]) == 15 and all(c["arms"] and c["claims"] for c in found["contrasts"])


def test_a_plan_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = told("contrast", "run", "pace", "--tier", "desk", "--dry-run")
    assert plan["dry_run"] is True and plan["contrasts"][0]["runs_at_most"] > 100
    assert "Nothing was changed" in call("contrast", "run", "--dry-run").stdout
    assert not list(tmp_path.iterdir())


def test_nothing_is_run_twice_and_a_report_says_what_there_is(store: Path) -> None:
    assert told(*RUN, "--store", store)["runs"]["done"] == 0
    said = call("contrast", "report", "pattern", *OWN, "--seeds", 1, "--store", store)
    assert "Unstructured, semi-structured" in said.stdout and "at least 3 are needed" in said.stderr
    assert call("contrast", "report", "--store", store.parent / "none.db", code=2)


def test_a_report_is_a_site(store: Path, tmp_path: Path) -> None:
    made = told("contrast", "report", "pattern", *OWN, "--seeds", 1, "--store", store, "--out", tmp_path / "site")
    assert {Path(w).name for w in made["written"]} >= {"index.html", "pattern.html", "pattern.md", "pattern.json"}
    page = (tmp_path / "site" / "pattern.html").read_text(encoding="utf-8")
    assert "2:4" in page and "prunus contrast run --network mlp --data digits --images 96" in page


def test_runs_are_listed_shown_and_compared(store: Path) -> None:
    rows = told("runs", "list", "--store", store, "--status", "done")["runs"]
    assert {r["status"] for r in rows} == {"done"} and "magnitude" in call("runs", "list", "--store", store).stdout
    snip, other = (next(r for r in rows if r["method"] == m) for m in ("l1_filter", "l1_filter_shuffle"))
    (shown,) = told("runs", "show", snip["key"][:12], "--store", store)
    assert shown["record"]["test"] == snip["test"] and shown["spec"]["recipe"]["name"] == "l1_filter"
    found = told("runs", "compare", snip["key"][:12], other["key"][:12], "--store", store)
    assert 0 < found["masks"]["jaccard"] < 1 and "record.masks" in found["differ"]
    assert "Jaccard" in call("runs", "compare", snip["key"][:12], other["key"][:12], "--store", store).stdout
    assert call("runs", "show", "zzz", "--store", store, code=2)


def test_runs_are_exported_imported_and_deleted(store: Path, tmp_path: Path) -> None:
    table, copy = tmp_path / "runs.csv", tmp_path / "copy.db"
    count = told("runs", "export", table, "--store", store)["runs"]
    assert told("runs", "import", table, "--store", copy) == {"imported": count, "there_before": 0}
    assert told("runs", "import", table, "--store", copy) == {"imported": 0, "there_before": count}
    planned = told("runs", "delete", "--method", "random", "--store", copy, "--dry-run")
    assert planned["dry_run"] and planned["runs"]
    assert told("runs", "delete", "--method", "random", "--store", copy) == {"deleted": len(planned["runs"])}
    assert told("runs", "list", "--method", "random", "--store", copy)["runs"] == []
    assert call("runs", "delete", "--store", copy, code=2)
    assert call("runs", "import", tmp_path / "none.csv", "--store", copy, code=1)


@pytest.mark.parametrize(
    "args",
    [
        ("contrast", "run", "nothing"),
        ("contrast", "run", "--tier", "huge"),
        ("contrast", "run", "--problem", "nobody"),
        ("contrast", "run", "--network", "mlp"),
        ("contrast", "run", "--network", "mlp", "--data", "digits", "--lr", "fast"),
        ("contrast", "run", "--engine", "slurm"),
        ("runs", "list", "--store", "there-is-no-such.db"),
    ],
)
def test_wrong_use_is_said_before_anything_is_made(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*args, code=2).stderr.startswith("error")
    assert not list(tmp_path.iterdir())
