"""Runs as a table: out of a store to CSV or Parquet, and back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunus.core.errors import DataError, SpecError, require
from prunus.deploy.atomic import write_bytes
from prunus.lab.contrast.trial import Environment, Record, Spec
from prunus.lab.store import Row, Store

PLAIN = (
    "test",
    "test_top5",
    "valid",
    "untrained",
    "sparsity",
    "effective",
    "steps",
    "seconds",
    "masks",
    "initial",
    "data",
)
SIZES = ("params_dense", "params_kept", "macs_dense", "macs_kept")
COLUMNS = (
    *("key", "environment", "status", "problem", "network", "method", "currency", "keep", "epochs", "rate", "seed"),
    *PLAIN,
    *SIZES,
    *("prunus", "torch", "processor", "trace", "spec", "record", "facts"),
)
KINDS = (".csv", ".parquet")


def flat(row: Row, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A row with a column for everything one would filter or plot by, and what it takes to put it back."""
    spec = Spec.model_validate(dict(row.spec))
    plain: dict[str, Any] = dict.fromkeys(COLUMNS)
    plain |= {
        "key": row.key,
        "environment": row.environment,
        "status": row.status,
        "problem": spec.problem.name,
        "network": spec.problem.network,
        "method": spec.method,
        "currency": spec.currency,
        "keep": spec.keep,
        "epochs": spec.epochs,
        "rate": spec.rate,
        "seed": spec.seed,
        "trace": row.trace,
        "spec": json.dumps(row.spec, sort_keys=True),
        "record": "" if row.record is None else json.dumps(row.record, sort_keys=True),
        "facts": json.dumps(facts, sort_keys=True),
        **{k: facts.get(k) for k in ("prunus", "torch", "processor")},
    }
    if row.record is not None:
        plain |= {k: row.record.get(k) for k in (*PLAIN, *SIZES)}
    return plain


def export(rows: Iterable[Row], facts: Mapping[str, Mapping[str, Any]], file: Path) -> int:
    """Write runs to a `.csv` or `.parquet` file; returns how many.

    Raises:
        SpecError: another kind of file.
        MissingExtraError: Parquet, and pyarrow is not installed.
    """
    kind = _kind(file)
    table = [flat(row, facts.get(row.environment, {})) for row in rows]
    if kind == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        write_bytes(file, text.getvalue().encode("utf-8"))
    else:
        arrow = require("pyarrow", extra="parquet", why="Parquet files")
        parquet = require("pyarrow.parquet", extra="parquet")
        buffer = io.BytesIO()
        parquet.write_table(arrow.table({c: [r[c] for r in table] for c in COLUMNS}), buffer)
        write_bytes(file, buffer.getvalue())
    return len(table)


def read(file: Path) -> list[tuple[Row, Mapping[str, Any]]]:
    """The runs of an exported file, each with the facts of its environment.

    Raises:
        DataError: not a file of `export`, or a run in it is not what its key says.
        SpecError: another kind of file.
        MissingExtraError: Parquet, and pyarrow is not installed.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    if _kind(file) == ".csv":
        with file.open(encoding="utf-8", newline="") as stream:
            csv.field_size_limit(2**31 - 1)
            table: list[dict[str, Any]] = list(csv.DictReader(stream))
    else:
        parquet = require("pyarrow.parquet", extra="parquet", why="Parquet files")
        try:
            table = parquet.read_table(file).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as Parquet: {error}") from error
    return [_row(plain, f"{file}, run {i + 1}") for i, plain in enumerate(table)]


def put_back(store: Store, found: Iterable[tuple[Row, Mapping[str, Any]]]) -> int:
    """Put runs that are over into a store that lacks them; returns how many. Masks and weights do not come back."""
    added = 0
    for row, facts in found:
        if row.status != "done" or row.record is None:
            continue
        store.add([(row.key, row.spec)], row.environment, facts)
        if store.claim(row.key, row.environment):
            added += store.finish(row.key, row.environment, row.record)
    return added


def _row(plain: Mapping[str, Any], where: str) -> tuple[Row, Mapping[str, Any]]:
    try:
        spec = Spec.model_validate_json(plain["spec"])
        record = Record.model_validate_json(plain["record"]).model_dump(mode="json") if plain["record"] else None
        facts = Environment.model_validate_json(plain["facts"])
        key, environment, status = plain["key"], plain["environment"], plain["status"]
    except (KeyError, TypeError, ValidationError) as error:
        raise DataError(f"{where} is no exported run: {error}") from None
    if spec.key != key or facts.key != environment or status not in ("pending", "running", "done", "failed"):
        raise DataError(f"{where} is not what its key says: the file was changed")
    row = Row(key, environment, status, spec.model_dump(mode="json"), record, plain.get("trace") or "")
    return row, facts.model_dump()


def _kind(file: Path) -> str:
    if file.suffix not in KINDS:
        raise SpecError(f"{file}: runs are exported to {' or '.join(KINDS)}")
    return file.suffix
