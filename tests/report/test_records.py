from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from prunus.core.errors import PrunusError, SpecError
from prunus.report import LayerDensity, Point, Report
from prunus.report import files as report_files
from tests.report.sample import method, report


def test_json_restores_an_equal_report() -> None:
    before = report()
    assert Report.from_json(before.to_json()) == before


def test_missing_and_nan_survive_json() -> None:
    changed = method(accuracy_after=math.nan, accuracy_before=None, latency=None, latency_ratio=None, macs_kept=None)
    text = report().model_copy(update={"methods": [changed]}).to_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    restored = Report.from_json(text).methods[0]
    assert restored.accuracy_after is not None and math.isnan(restored.accuracy_after)
    assert restored.accuracy_before is None and restored.latency is None and restored.macs_kept is None


def test_values_keep_their_types() -> None:
    restored = Report.from_json(report().to_json())
    assert type(restored.environment["threads"]) is int
    assert type(restored.environment["load"]) is float
    assert type(restored.environment["torch"]) is str


def test_records_are_frozen_and_closed() -> None:
    record = method()
    with pytest.raises(ValidationError):
        record.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="colour"):
        method(colour="red")


@pytest.mark.parametrize("accuracy", [91.8, -0.1, math.inf])
def test_accuracy_is_a_fraction(accuracy: float) -> None:
    with pytest.raises(ValidationError, match="fraction"):
        Point(sparsity=0.5, accuracy=accuracy)


def test_counts_are_not_negative() -> None:
    with pytest.raises(ValidationError):
        LayerDensity(layer="fc", weights=10, kept=-1, kind="linear")


def test_derived_numbers() -> None:
    assert method(params_dense=200, params_kept=50).sparsity == 0.75
    assert math.isnan(method(params_dense=0, params_kept=0).sparsity)
    assert LayerDensity(layer="a", weights=8, kept=2, kind="conv").density == 0.25


@pytest.mark.parametrize(("text", "where"), [("{", "the file"), ('{"title": 1}', "title")])
def test_wrong_json_is_named(text: str, where: str) -> None:
    with pytest.raises(SpecError, match=where):
        Report.from_json(text)


def test_write_makes_the_folder_and_three_files(tmp_path: Path) -> None:
    page = report().write(tmp_path / "a" / "b")
    assert page == tmp_path / "a" / "b" / "report.html"
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    assert Report.from_json((page.parent / "report.json").read_text()) == report()
    assert page.read_text() == report().html()


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report().write(tmp_path)
    old = {p.name: p.read_text() for p in tmp_path.iterdir()}
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # the third of three files
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_files.os, "fsync", full)
    with pytest.raises(PrunusError, match="disk is full") as caught:
        report().model_copy(update={"title": "another"}).write(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == old


def test_a_read_only_file_system_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(report_files.os, "open", refused)
    with pytest.raises(PrunusError, match="read-only"):
        report().write(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report().write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(PrunusError, match="is a file, not a folder"):
        report().write(tmp_path / "taken" / below)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(PrunusError, match="folder stands where"):
        report().write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]
