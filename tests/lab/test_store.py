"""Runs are claimed once, survive kills, and come back from a table; a damaged store is refused."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunus.core.errors import VerificationError
from prunus.lab import store as stores
from prunus.lab.store import Store, StoreError
from tests.lab.forked import ended, forked

A, B, HERE = "a" * 64, "b" * 64, "0123456789ab"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as these tests."""
    pgserver, _ = pytest.importorskip("pgserver"), pytest.importorskip("psycopg")
    running = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield running.get_uri().replace("postgresql://", "postgresql+psycopg://")
    running.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty store's place: a file, or a database of a server."""
    if request.param == "sqlite":
        yield str(tmp_path / "runs.db")
        return
    url: str = request.getfixturevalue("server")
    yield url
    found = Store(url)
    found.meta.drop_all(found.engine)
    found.close()


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    found = Store(where)
    found.add([(A, {"x": 1}), (B, {"x": 2})], HERE, {"torch": "2"})
    yield found
    found.close()


def test_what_is_there_is_not_added_again_and_rows_tell_all(store: Store) -> None:
    assert store.add([(A, {"x": 9})], HERE, {}) == 0
    assert [(r.key, r.status, r.spec) for r in store.rows()] == [(A, "pending", {"x": 1}), (B, "pending", {"x": 2})]
    assert store.facts() == {HERE: {"torch": "2"}}


def test_a_run_is_claimed_by_one_and_finished_by_nobody_else(store: Store, where: str) -> None:
    other = Store(where)
    assert store.claim(A, HERE) and not store.claim(A, HERE) and not other.claim(A, HERE)
    assert not other.finish(A, HERE, {"test": 0.0})
    assert store.finish(A, HERE, {"test": 1.0}, masks=b"abc")
    assert not other.claim(A, HERE)
    (row,) = other.rows(status="done")
    assert row.record == {"test": 1.0} and row.attempts == 1 and other.blob(A, HERE, "masks") == b"abc"
    assert other.blob(A, HERE, "weights") is None and other.rows("another") == []
    other.close()


def test_a_failure_keeps_its_traceback_and_can_be_tried_again(store: Store) -> None:
    assert store.claim(A, HERE)
    store.fail(A, HERE, "Traceback: boom")
    assert not store.claim(A, HERE)
    (row,) = store.rows(status="failed")
    assert row.trace == "Traceback: boom"
    assert store.retry([A, B], HERE) == 1 and store.claim(A, HERE)


def test_claims_of_the_dead_and_of_the_silent_are_free(
    store: Store, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(forked(lambda: Store(where).claim(A, HERE))) == 0
    assert store.claim(A, HERE)
    # A claim from another machine is free once its heart has stopped for long.
    far = Store(where)
    far.owner = "elsewhere/1/00000000"
    assert far.claim(B, HERE) and not store.claim(B, HERE)
    monkeypatch.setattr(stores, "STALE", -1.0)
    assert store.claim(B, HERE)
    assert not far.finish(B, HERE, {})
    far.close()


def test_a_heart_beats_while_a_run_goes_on_and_an_interruption_gives_it_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "BEAT", 0.02)
    store.claim(A, HERE)
    with store.beating(A, HERE):
        before = beat(store)
        time.sleep(0.2)
        assert beat(store) > before
    with pytest.raises(KeyboardInterrupt), store.beating(A, HERE):
        raise KeyboardInterrupt
    assert store.rows(status="pending")[0].key == A


def beat(store: Store) -> float:
    with store.engine.connect() as db:
        return float(db.execute(store.sql.select(store.runs.c.beat).where(store.runs.c.key == A)).scalar_one())


def test_processes_share_a_store_and_make_no_run_twice(where: str) -> None:
    """Four processes over sixty runs: each is claimed and finished by exactly one of them."""
    keys = [f"{i:064d}" for i in range(60)]

    def work() -> None:
        mine = Store(where)  # made by whoever comes first
        mine.add([(k, {}) for k in keys], HERE, {})
        for key in keys:
            if mine.claim(key, HERE):
                mine.finish(key, HERE, {"pid": os.getpid()})

    children = [forked(work) for _ in range(4)]
    assert [ended(c) for c in children] == [0, 0, 0, 0]
    last = Store(where)
    found = last.rows()
    last.close()
    assert [r.key for r in found] == keys
    assert all(r.status == "done" and r.attempts == 1 for r in found)


def test_kills_at_any_moment_lose_nothing_that_was_written(tmp_path: Path) -> None:
    file, keys = tmp_path / "killed.db", [f"{i:064d}" for i in range(2000)]
    first = Store(file)
    first.add([(k, {}) for k in keys], HERE, {})

    def work() -> None:
        mine = Store(file)
        for key in keys:
            if mine.claim(key, HERE):
                mine.finish(key, HERE, {"n": 1}, masks=b"x" * 1000)

    for kill in range(5):
        child = forked(work)
        time.sleep(0.05 + 0.07 * kill)
        os.kill(child, signal.SIGKILL)
        ended(child)
        again = Store(file)
        done = again.rows(status="done")
        assert all(r.record == {"n": 1} and again.blob(r.key, HERE, "masks") == b"x" * 1000 for r in done[:20])
        running = again.rows(status="running")
        assert len(running) <= 1 and all(again.claim(r.key, HERE) for r in running)
        assert all(again.finish(r.key, HERE, {"n": 1}, masks=b"x" * 1000) for r in running)
        again.close()
    first.close()


def test_threads_share_one_store(store: Store) -> None:
    won = []
    threads = [threading.Thread(target=lambda: won.append(store.claim(A, HERE))) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(won) == 1


@pytest.mark.parametrize("how", ["text", "page", "other tables", "newer form"])
def test_what_is_no_store_is_refused_with_the_way_out(tmp_path: Path, how: str) -> None:
    file = tmp_path / "bad.db"
    if how == "text":
        file.write_bytes(b"these are no runs\n" * 400)
    else:
        good = Store(file)
        good.add([(f"{i:064d}", {"i": i}) for i in range(200)], HERE, {})
        with good.engine.begin() as db:
            if how == "other tables":
                db.exec_driver_sql("ALTER TABLE store RENAME TO shop")
            elif how == "newer form":
                db.exec_driver_sql("UPDATE store SET schema = 99")
        good.close()
        if how == "page":
            data = bytearray(file.read_bytes())
            data[4096 : 4 * 4096] = os.urandom(3 * 4096)
            file.write_bytes(data)
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"import|no store|export"):
        Store(file)
    assert file.read_bytes() == before


def test_changed_tensors_are_noticed_and_deletion_takes_everything(store: Store) -> None:
    store.claim(A, HERE)
    store.finish(A, HERE, {}, masks=b"abc")
    with store.engine.begin() as db:
        db.execute(store.sql.update(store.blobs).values(data=b"abd"))
    with pytest.raises(VerificationError, match="were changed"):
        store.blob(A, HERE, "masks")
    assert store.delete([(A, HERE), ("c" * 64, HERE)]) == 1
    assert [r.key for r in store.rows()] == [B] and store.blob(A, HERE, "masks") is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://nobody@localhost/none", "a store is a file, or a database of PostgreSQL"),
        ("postgresql+nosuchdriver://nobody@localhost/none", "is no URL of a database"),
        ("postgresql+psycopg://nobody@localhost:1/none", "needs the driver|connection"),
    ],
)
def test_a_database_that_cannot_be_had_is_said(url: str, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        Store(url)
