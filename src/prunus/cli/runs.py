"""prunus runs: what a store of runs holds; filter, compare, delete, export, import."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.cli.bundles import bundled
from prunus.cli.contrast import StoreAt
from prunus.cli.output import DryRun, Json, console, emit, guarded, planned, say
from prunus.core.errors import SpecError

if TYPE_CHECKING:
    from prunus.lab.store import Row, Store

app = typer.Typer(no_args_is_help=True, help="The runs of a store: list, show, compare, delete, export, import.")


@dataclass(frozen=True)
class Filters:
    """The options by which runs are chosen; those that are given must all fit."""

    method: Annotated[str | None, typer.Option(help="Only runs of this method.")] = None
    problem: Annotated[str | None, typer.Option(help="Only runs on this problem.")] = None
    status: Annotated[str | None, typer.Option(help="Only runs that are pending, running, done or failed.")] = None
    seed: Annotated[int | None, typer.Option(help="Only runs of this seed.")] = None
    environment: Annotated[str | None, typer.Option(help="Only runs of this environment.")] = None

    def rows(self, kept: Store) -> list[Row]:
        """The runs that fit."""
        from prunus.lab.contrast.trial import Spec

        if self.status not in (None, "pending", "running", "done", "failed"):
            raise SpecError(f"--status {self.status}: pending, running, done or failed")
        found = []
        for row in kept.rows(self.environment):
            spec = Spec.model_validate(dict(row.spec))
            have = (spec.method, spec.problem.name, row.status, spec.seed)
            asked = zip((self.method, self.problem, self.status, self.seed), have, strict=True)
            if all(want is None or want == has for want, has in asked):
                found.append(row)
        return found


NO_FILTERS = Filters()


@app.command("list")
@guarded
@bundled
def list_(
    store: StoreAt = "runs.db",
    filters: Filters = NO_FILTERS,
    json: Json = False,
) -> None:
    """The runs, and the environments that they were made in."""
    from prunus.lab.exchange import flat

    kept = opened(store)
    rows, facts = filters.rows(kept), kept.facts()
    kept.close()
    if json:
        emit({"runs": [_brief(flat(r, facts[r.environment])) for r in rows], "environments": facts})
        return
    from rich.table import Table

    table = Table("run", "problem", "method", "keep", "seed", "rate", "test", "status", "finished", "environment")
    for r in rows:
        f = flat(r, facts[r.environment])
        when = datetime.fromtimestamp(r.finished).isoformat(" ", "minutes") if r.finished else ""
        tested = "" if f["test"] is None else f"{f['test']:.4f}"
        table.add_row(
            r.key[:12], f["problem"], f["method"], f"{f['keep']:g}", str(f["seed"]), f"{f['rate']:g}", tested, r.status,
            when, r.environment,
        )  # fmt: skip
    console().print(table)
    for key, fact in facts.items():
        count = sum(r.environment == key for r in rows)
        console().print(f"{key}: {count} runs, prunus {fact['prunus']}, torch {fact['torch']}, {fact['processor']}")


@app.command()
@guarded
def show(
    run: Annotated[str, typer.Argument(help="The first digits of a run's key.")],
    store: StoreAt = "runs.db",
    json: Json = False,
) -> None:
    """Everything about a run: what it is, what came of it, how it failed."""
    kept = opened(store)
    found = _named(kept, run)
    facts = kept.facts()
    kept.close()
    if json:
        emit([_whole(r, facts) for r in found])
        return
    for r in found:
        console().print_json(data=_whole(r, facts))


@app.command()
@guarded
def compare(
    left: Annotated[str, typer.Argument(help="A run, by the first digits of its key.")],
    right: Annotated[str, typer.Argument(help="Another.")],
    store: StoreAt = "runs.db",
    json: Json = False,
) -> None:
    """Two runs: in what they differ, and how much their masks have in common."""
    from prunus.lab.contrast.sweep import unpacked
    from prunus.measure import jaccard, jaccards

    kept = opened(store)
    one, other = _single(kept, left), _single(kept, right)
    blobs = [kept.blob(r.key, r.environment, "masks") for r in (one, other)]
    kept.close()
    first, second = _leaves(one), _leaves(other)
    differ = {k: [first.get(k), second.get(k)] for k in sorted(first | second) if first.get(k) != second.get(k)}
    similar: dict[str, Any] | None = None
    if blobs[0] is not None and blobs[1] is not None:
        masks = unpacked(blobs[0]), unpacked(blobs[1])
        if {n: m.shape for n, m in masks[0].items()} == {n: m.shape for n, m in masks[1].items()}:
            similar = {"jaccard": jaccard(*masks), "layers": jaccards(*masks)}
    if json:
        emit({"differ": differ, "masks": similar})
        return
    from rich.table import Table

    table = Table("", left, right)
    for name, (a, b) in differ.items():
        table.add_row(name, _short(a), _short(b))
    console().print(table)
    if similar is not None:
        console().print(f"masks: Jaccard index {similar['jaccard']:.4f} of what is kept")
        for name, value in similar["layers"].items():
            console().print(f"  {name}: {value:.4f}")


@app.command()
@guarded
@bundled
def delete(
    runs: Annotated[list[str] | None, typer.Argument(help="Runs, by the first digits of their keys.")] = None,
    store: StoreAt = "runs.db",
    filters: Filters = NO_FILTERS,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Delete runs with their masks and weights: those named, or all that fit the filters."""
    if bool(runs) == (filters != NO_FILTERS):
        raise SpecError("name runs, or give at least one filter (--method, --status failed, ...), not both")
    kept = opened(store)
    found = [r for name in runs or () for r in _named(kept, name)] if runs else filters.rows(kept)
    if dry_run:
        kept.close()
        planned(json, {"runs": [r.key for r in found]}, f"{len(found)} runs would be deleted")
        return
    gone = kept.delete((r.key, r.environment) for r in found)
    kept.close()
    if json:
        emit({"deleted": gone})
    else:
        say(f"{gone} runs deleted")


@app.command("export")
@guarded
@bundled
def export_(
    file: Annotated[Path, typer.Argument(help="Where to: FILE.csv or FILE.parquet.")],
    store: StoreAt = "runs.db",
    filters: Filters = NO_FILTERS,
    json: Json = False,
) -> None:
    """Write runs to a table; `import` reads it back."""
    from prunus.lab.exchange import export

    kept = opened(store)
    rows = filters.rows(kept)
    count = export(rows, kept.facts(), file)
    kept.close()
    if json:
        emit({"written": str(file), "runs": count})
    else:
        say(f"written: {count} runs to {file}")


@app.command("import")
@guarded
def import_(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    store: StoreAt = "runs.db",
    json: Json = False,
) -> None:
    """Put exported runs into a store (made when it is not there); runs that it has stay as they are."""
    from prunus.lab.exchange import put_back, read
    from prunus.lab.store import Store

    found = read(file)
    kept = Store(store)
    count = put_back(kept, found)
    kept.close()
    if json:
        emit({"imported": count, "there_before": len(found) - count})
    else:
        say(f"imported: {count} of {len(found)} runs; masks and weights are not in such a file")


def opened(where: str) -> Store:
    """The store, which must be there."""
    from prunus.lab.store import Store

    if "://" not in where and not Path(where).expanduser().is_file():
        raise SpecError(f"there is no store {where}: prunus contrast run makes one, prunus runs import fills one")
    return Store(where)


def _named(kept: Store, start: str) -> list[Row]:
    """The runs whose key starts so: one, but for environments."""
    found = [r for r in kept.rows() if r.key.startswith(start)]
    if not found or len({r.key for r in found}) > 1:
        raise SpecError(f"{len({r.key for r in found})} runs begin with {start!r}: prunus runs list shows their keys")
    return found


def _single(kept: Store, start: str) -> Row:
    found = _named(kept, start)
    if len(found) > 1:
        places = ", ".join(r.environment for r in found)
        raise SpecError(f"run {start} was made in {len(found)} environments ({places}): runs of those are not mixed")
    return found[0]


def _whole(row: Row, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": row.key,
        "status": row.status,
        "environment": facts[row.environment],
        "attempts": row.attempts,
        "spec": row.spec,
        "record": row.record,
        "trace": row.trace,
    }


def _leaves(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                walk(v, f"{name}.{k}" if name else k)
        elif not isinstance(value, list):
            found[name] = value

    walk({"spec": row.spec, "record": row.record}, "")
    return found


def _brief(flat: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in flat.items() if k not in ("spec", "record", "facts")}


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
