"""Tables on terminals of several widths."""

from __future__ import annotations

import pytest

from prunus.cli.showing import counting, present
from prunus.report.analysis import Analysis, Table

COLUMNS = ("runtime", "dense ms", "dense eager / pruned", "quartiles", "peak MB")
ROWS = (
    ("onnxruntime-int8-static", 0.2091, 12.41, "0.123 to 0.167", 1.79),
    ("eager", 1.8571, 1.2345, "1.83 to 1.89", None),
)
LONG = "it is not installed: " + "install it, " * 20 + "then again"


def analysis(*tables: Table) -> Analysis:
    return Analysis("deploy", "Title", "source", ("A finding.",), tables, (), {})


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_cells_are_whole_and_what_is_left_out_is_named(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    present(analysis(Table("Times", COLUMNS, ROWS, digits=".3g")), False, None)
    text = capsys.readouterr().out
    *table, hidden = text.split("Not shown: columns ") if "Not shown" in text else (text, "")
    assert "…" not in text and all(len(line.rstrip()) <= width for line in table[0].splitlines())
    left = [c for c in COLUMNS if c in hidden]
    assert left == list(COLUMNS[len(COLUMNS) - len(left) :]) and bool(left) == (width < 80)
    for row in ROWS:
        line = next(x for x in text.splitlines() if x.startswith(row[0]))
        shown = [Table("", (), (), digits=".3g").shown(c) for c in row[: len(COLUMNS) - len(left)]]
        assert " ".join(line.split()) == " ".join(shown)


def test_long_texts_are_broken_and_empty_tables_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    present(analysis(Table("Not run", ("runtime", "why"), (("mnn", LONG),)), Table("Empty", ("a",), ())), False, None)
    text = capsys.readouterr().out
    assert "Empty" not in text and text.count("install it,") == 20 and max(map(len, text.splitlines())) <= 60


def test_a_pipe_is_given_every_column(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    present(analysis(Table("Wide", tuple(f"column{i}" for i in range(40)), (tuple(range(40)),))), False, None)
    text = capsys.readouterr().out
    assert "Not shown" not in text and all(f"column{i}" in text for i in range(40))


def test_what_comes_next_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("deploy") as step:
        step(0, 2, "eager")
        step(1, 2, "openvino")
    assert capsys.readouterr().err.splitlines() == ["eager (1 of 2)", "openvino (2 of 2)"]
