"""Runs in a CSV: one row per run, appended as soon as it is made, so that an interrupted series goes on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from prunus.core.errors import DataError

T = TypeVar("T")


def rows(path: Path, kind: type[T]) -> list[T]:
    """The rows as objects of a dataclass of strings, integers and floats, or one of them or None (an empty field).

    Raises:
        DataError: a column too many or too few, or a field that is none of its type.
    """
    if not path.is_file():
        return []
    hints = get_type_hints(kind)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if (have := set(reader.fieldnames or ())) != (want := set(hints)):
            raise DataError(f"{path} has the columns {sorted(have)}; {kind.__name__} has {sorted(want)}")
        try:
            return [kind(**{k: _value(v, hints[k]) for k, v in line.items()}) for line in reader]
        except ValueError as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from None


def add(path: Path, row: Any) -> None:
    """Append a row (a dataclass); the first one brings the head."""
    names = [f.name for f in fields(row)]
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if new:
            writer.writeheader()
        values: Mapping[str, Any] = asdict(row)
        writer.writerow(values)


def _value(text: str, hint: Any) -> Any:
    kinds = [k for k in get_args(hint) if k is not type(None)] or [hint]
    return None if not text and len(get_args(hint)) > 1 else kinds[0](text)
