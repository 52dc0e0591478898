"""Rows of runs in a CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from prunus.core.errors import DataError
from prunus.lab import ledger


@dataclass(frozen=True)
class Row:
    name: str
    seed: int
    test: float
    open: float | None = None


def test_rows_come_back_as_they_were_added(tmp_path: Path) -> None:
    path, made = tmp_path / "runs.csv", [Row("a, b", 1, 0.1 + 0.2), Row("", 0, 1e-9, 0.25)]
    assert ledger.rows(path, Row) == []
    for row in made:
        ledger.add(path, row)
    assert ledger.rows(path, Row) == made
    assert path.read_text(encoding="utf-8").splitlines()[0] == "name,seed,test,open"


@pytest.mark.parametrize(
    ("text", "why"), [("name,seed\na,1\n", "columns"), ("name,seed,test,open\na,one,0.5,\n", "line 2")]
)
def test_a_table_of_something_else_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=why):
        ledger.rows(path, Row)
