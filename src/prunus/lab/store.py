"""Where runs are kept: a file of SQLite, or a PostgreSQL database by URL, behind the same code.

A run is known by its key (what is run) and its environment (code and machine), so nothing is run twice and nothing is
mixed. Several processes share a store: a run belongs to the one whose claim the database granted; a process that ends
without a word loses its claim, at once where it ran on this machine, else when its heartbeat has stopped for five
minutes (clocks of machines that share a database must agree within that).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunus.core.errors import DataError, PrunusError, VerificationError, require

Status = Literal["pending", "running", "done", "failed"]
SCHEMA = 1
BEAT, STALE = 30.0, 300.0
CREATING = 40


class StoreError(PrunusError):
    """A store that cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class Row:
    """A run in the store: what it is, how it stands, and what came of it.

    Attributes:
        key, environment: what is run, and on what.
        status: pending, running, done, or failed.
        spec: what is run, as JSON values.
        record: what came of it, as JSON values; None unless done.
        trace: the traceback of a failed run.
        owner: who runs it, or ran it.
        attempts: how often it was begun.
        finished: seconds since 1970, or None.
    """

    key: str
    environment: str
    status: Status
    spec: Mapping[str, Any]
    record: Mapping[str, Any] | None = None
    trace: str = ""
    owner: str = ""
    attempts: int = 0
    finished: float | None = None


class Store:
    """Runs, the environments that they were made in, and the tensors that they left.

    Args:
        where: path of an SQLite file (made when it is not there), or a database URL such as
            `postgresql+psycopg://user@host/name`.

    Cost: a file is read once when it is opened, to see that it is whole.

    Raises:
        StoreError: a file that is damaged or is no store, or a database that cannot be reached.
        MissingExtraError: SQLAlchemy, or the database's driver, is not installed.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.sql = require("sqlalchemy", extra="lab", why="runs are kept in a database")
        text = os.fspath(where)
        self.url = text if "://" in text else f"sqlite:///{Path(text).expanduser().resolve()}"
        self.path = None if "://" in text else Path(text).expanduser().resolve()
        self.owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._define()
        self._open()

    def _define(self) -> None:
        sql = self.sql
        self.meta = sql.MetaData()
        self.about = sql.Table("store", self.meta, sql.Column("schema", sql.Integer, primary_key=True))
        self.environments = sql.Table(
            "environments",
            self.meta,
            sql.Column("key", sql.String(12), primary_key=True),
            sql.Column("facts", sql.Text, nullable=False),
        )
        self.runs = sql.Table(
            "runs",
            self.meta,
            sql.Column("key", sql.String(64), primary_key=True),
            sql.Column("environment", sql.String(12), primary_key=True),
            sql.Column("status", sql.String(8), nullable=False, index=True),
            sql.Column("spec", sql.Text, nullable=False),
            sql.Column("record", sql.Text),
            sql.Column("trace", sql.Text, nullable=False, default=""),
            sql.Column("owner", sql.String(120), nullable=False, default=""),
            sql.Column("beat", sql.Float, nullable=False, default=0.0),
            sql.Column("attempts", sql.Integer, nullable=False, default=0),
            sql.Column("finished", sql.Float),
        )
        self.blobs = sql.Table(
            "blobs",
            self.meta,
            sql.Column("key", sql.String(64), primary_key=True),
            sql.Column("environment", sql.String(12), primary_key=True),
            sql.Column("kind", sql.String(16), primary_key=True),
            sql.Column("sha256", sql.String(64), nullable=False),
            sql.Column("data", sql.LargeBinary, nullable=False),
        )

    def _open(self) -> None:
        sql = self.sql
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.url.partition(":")[0].partition("+")[0] not in ("sqlite", "postgresql"):
            raise StoreError(f"{self.url}: a store is a file, or a database of PostgreSQL (postgresql+psycopg://...)")
        try:
            self.engine = sql.create_engine(self.url)
            if self.engine.dialect.name == "sqlite":
                sql.event.listen(self.engine, "connect", _sqlite)
            with self.engine.begin() as db:
                if self.path is not None:
                    (found,) = db.exec_driver_sql("PRAGMA quick_check(1)").one()
                    if found != "ok":
                        raise StoreError(self._damaged(str(found)))
            self._create()
            with self.engine.connect() as db:
                (schema,) = db.execute(sql.select(self.about.c.schema)).one()
                if schema != SCHEMA:
                    raise StoreError(
                        f"{self.url} was written in form {schema}, this version knows form {SCHEMA}: export it with "
                        f"the version that wrote it (prunus runs export), and import that into a new store"
                    )
        except sql.exc.DatabaseError as error:
            raise StoreError(self._damaged(str(error.orig)) if self.path else f"{self.url}: {error.orig}") from error
        except ModuleNotFoundError as error:
            raise StoreError(f"{self.url} needs the driver {error.name}: pip install 'prunus[postgres]'") from error
        except sql.exc.ArgumentError as error:
            raise StoreError(f"{self.url} is no URL of a database: {error}") from error

    def _create(self) -> None:
        """Make the tables, all or none; where another process does so at the same time, wait for it."""
        for attempt in range(CREATING):
            with self.engine.connect() as db:
                known = set(self.sql.inspect(db).get_table_names())
            if "store" in known:
                return
            if known:
                raise StoreError(f"{self.url} holds the tables {', '.join(sorted(known))}: it is no store of runs")
            try:
                with self.engine.begin() as db:
                    if self.engine.dialect.name == "sqlite":
                        db.exec_driver_sql("BEGIN IMMEDIATE")
                    self.meta.create_all(db, checkfirst=False)
                    self._insert(db, self.about, [{"schema": SCHEMA}])
            except self.sql.exc.DatabaseError:
                if attempt + 1 == CREATING:
                    raise
                time.sleep(0.05)

    def _damaged(self, why: str) -> str:
        return (
            f"{self.path} is damaged ({why}). Nothing was changed. Move the file away and begin a new store; runs that "
            f"were exported come back with `prunus runs import FILE`, and `sqlite3 {self.path} .recover` saves what "
            f"can still be read"
        )

    def _insert(self, db: Any, table: Any, rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert what is not there; how many rows that were."""
        if not rows:
            return 0
        insert = require(f"sqlalchemy.dialects.{self.engine.dialect.name}", extra="lab").insert
        first = next(iter(table.primary_key))
        made = insert(table).on_conflict_do_nothing().returning(first)
        return sum(len(db.execute(made, dict(row)).all()) for row in rows)

    # What is to be run

    def add(self, specs: Iterable[tuple[str, Mapping[str, Any]]], environment: str, facts: Mapping[str, Any]) -> int:
        """Put down runs as pending, those that are not there yet; returns how many are new."""
        rows = [
            {"key": k, "environment": environment, "status": "pending", "spec": json.dumps(s, sort_keys=True)}
            for k, s in specs
        ]
        with self.engine.begin() as db:
            self._insert(db, self.environments, [{"key": environment, "facts": json.dumps(facts)}])
            return self._insert(db, self.runs, rows)

    def claim(self, key: str, environment: str) -> bool:
        """Take a run: True where it is now this process's, False where it is done, failed or another's."""
        c, now = self.runs.c, time.time()
        free = (c.status == "pending") | ((c.status == "running") & (c.beat < now - STALE))
        gone = [o for o in self._owners(key, environment) if _ended(o)]
        free = free | ((c.status == "running") & c.owner.in_(gone)) if gone else free
        with self.engine.begin() as db:
            taken = db.execute(
                self.sql.update(self.runs)
                .where(c.key == key, c.environment == environment, free)
                .values(status="running", owner=self.owner, beat=now, attempts=c.attempts + 1)
            )
            return int(taken.rowcount) == 1

    def _owners(self, key: str, environment: str) -> list[str]:
        c = self.runs.c
        with self.engine.connect() as db:
            where = (c.key == key) & (c.environment == environment) & (c.status == "running")
            return [str(o) for (o,) in db.execute(self.sql.select(c.owner).where(where))]

    @contextmanager
    def beating(self, key: str, environment: str) -> Iterator[None]:
        """Keep the claim alive while the run goes on; an interruption gives it back."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                self._mine(key, environment, beat=time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._mine(key, environment, status="pending")
            raise
        finally:
            stop.set()
            thread.join()

    def finish(self, key: str, environment: str, record: Mapping[str, Any], **blobs: bytes) -> bool:
        """Write down what came of a run, with the tensors it left, in one transaction; False where the claim was lost.

        blobs: kind -> bytes.
        """
        with self.engine.begin() as db:
            done = self._update(db, key, environment, status="done", record=json.dumps(record), finished=time.time())
            if done:
                place = {"key": key, "environment": environment}
                rows = [{**place, "kind": k, "sha256": _sha(v), "data": v} for k, v in blobs.items()]
                self._insert(db, self.blobs, rows)
            return done

    def fail(self, key: str, environment: str, trace: str) -> None:
        """Write down that a run failed, and how."""
        self._mine(key, environment, status="failed", trace=trace, finished=time.time())

    def lost(self, key: str, environment: str, trace: str = "") -> None:
        """Take a run from a process that is known to be gone, whoever it was: pending again; failed with a trace."""
        c = self.runs.c
        where = (c.key == key) & (c.environment == environment) & (c.status == "running")
        over = {"status": "failed", "trace": trace, "finished": time.time()} if trace else {"status": "pending"}
        with self.engine.begin() as db:
            db.execute(self.sql.update(self.runs).where(where).values(**over))

    def retry(self, keys: Iterable[str], environment: str) -> int:
        """Make failed runs pending again; returns how many."""
        c, changed = self.runs.c, 0
        with self.engine.begin() as db:
            for key in keys:
                where = (c.key == key) & (c.environment == environment) & (c.status == "failed")
                done = db.execute(self.sql.update(self.runs).where(where).values(status="pending", trace=""))
                changed += int(done.rowcount)
        return changed

    def _mine(self, key: str, environment: str, **values: Any) -> None:
        with self.engine.begin() as db:
            self._update(db, key, environment, **values)

    def _update(self, db: Any, key: str, environment: str, **values: Any) -> bool:
        c = self.runs.c
        where = (c.key == key) & (c.environment == environment) & (c.owner == self.owner) & (c.status == "running")
        return int(db.execute(self.sql.update(self.runs).where(where).values(**values)).rowcount) == 1

    # What is there

    def rows(self, environment: str | None = None, status: Status | None = None) -> list[Row]:
        """The runs, of one environment or all; in the order of their keys."""
        c = self.runs.c
        wanted = [c.environment == environment] * (environment is not None) + [c.status == status] * bool(status)
        asked = self.sql.select(
            c.key, c.environment, c.status, c.spec, c.record, c.trace, c.owner, c.attempts, c.finished
        ).where(*wanted)
        with self.engine.connect() as db:
            found = db.execute(asked.order_by(c.environment, c.key)).all()
        return [Row(r[0], r[1], r[2], _json(r[3], r[0]), _json(r[4], r[0]) if r[4] else None, *r[5:]) for r in found]

    def facts(self) -> dict[str, Mapping[str, Any]]:
        """The environments by key."""
        with self.engine.connect() as db:
            return {k: _json(f, k) for k, f in db.execute(self.sql.select(self.environments)).all()}

    def blob(self, key: str, environment: str, kind: str) -> bytes | None:
        """The tensors that a run left, as they were written; None where there are none.

        Raises:
            VerificationError: they are not what their digest says.
        """
        c = self.blobs.c
        where = (c.key == key) & (c.environment == environment) & (c.kind == kind)
        with self.engine.connect() as db:
            found = db.execute(self.sql.select(c.sha256, c.data).where(where)).one_or_none()
        if found is None:
            return None
        if _sha(bytes(found[1])) != found[0]:
            raise VerificationError(
                f"{self.url}: the {kind} of run {key[:12]} were changed; delete it: prunus runs delete"
            )
        return bytes(found[1])

    def delete(self, runs: Iterable[tuple[str, str]]) -> int:
        """Delete runs, by key and environment, with what they left; returns how many there were."""
        gone = 0
        with self.engine.begin() as db:
            for key, environment in runs:
                for table in (self.blobs, self.runs):
                    here = (table.c.key == key) & (table.c.environment == environment)
                    count = int(db.execute(self.sql.delete(table).where(here)).rowcount)
                gone += count
        return gone

    def close(self) -> None:
        """Give back the connections."""
        self.engine.dispose()


def _sqlite(connection: Any, _record: Any) -> None:
    """Writers wait for each other, readers for nobody; what is committed survives the process."""
    cursor = connection.cursor()
    for pragma in ("busy_timeout=60000", "journal_mode=WAL", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _ended(owner: str) -> bool:
    """Whether a process of this machine is gone; unknown (False) for those of others."""
    host, pid, _ = owner.split("/")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(text: str, key: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(
            f"what the store holds of {key[:12]} is no JSON ({error}); delete it: prunus runs delete"
        ) from None
    return dict(found)
