"""Writing whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import prunus
from prunus.core.errors import PrunusError, SpecError
from prunus.deploy import atomic
from prunus.deploy.atomic import MARK, check_replaceable, new_folder, write_text
from tests.deploy.toys import pruned, toy

ROOT = Path(__file__).parents[2]


def make(path: Path, content: str) -> None:
    with new_folder(path) as folder:
        (folder / MARK).write_text(content)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Writing beyond `limit` bytes into any one file fails, as on a full disk (Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_of_ours_is_replaced_whole(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    path = tmp_path / "x"
    make(path, "old")
    (path / "report.html").write_text("of the old one")
    make(path, "new")
    assert [p.name for p in path.iterdir()] == [MARK] and (path / MARK).read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


def test_what_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    result = pruned("unstructured")
    for name in ("file", "folder"):
        with pytest.raises(SpecError, match="no folder that prunus wrote"):
            prunus.save(result, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path / "folder") == ["thesis.tex"] and len(os.listdir(tmp_path)) == 2
    (tmp_path / "empty").mkdir()
    prunus.save(result, tmp_path / "empty")
    prunus.load(tmp_path / "empty", toy)


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path / "x", "old")

    def interrupted(path: Path) -> None:
        with new_folder(path) as folder:
            (folder / "half").write_text("...")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "x")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "a" / "b" / "c")
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x" / MARK).read_text() == "old"


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    result = pruned("unstructured")
    path = prunus.save(result, tmp_path / "x")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    for place in (path, tmp_path / "new" / "y"):
        # Into the weights, into the masks' neighbour (the manifest), and into the first byte.
        for limit in (1000, (path / "model.safetensors").stat().st_size - 1, 0):
            with full_disk(limit), pytest.raises(PrunusError, match="could not write"):
                prunus.save(result, place)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert os.listdir(tmp_path) == ["x"]
    with full_disk(3), pytest.raises(PrunusError, match="could not write"):
        write_text(path / "note.txt", "longer")
    assert {p.name for p in path.iterdir()} == set(before)


def test_a_file_in_the_place_of_a_parent_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = pruned("unstructured")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
        with pytest.raises(PrunusError, match="it is a file"):
            prunus.save(result, path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PrunusError, match="may not be written"):
        check_replaceable(tmp_path / "locked" / "x")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_get_the_mode_that_the_user_wants(mask: int, tmp_path: Path) -> None:
    result = pruned("unstructured")
    before = os.umask(mask)
    try:
        path = prunus.save(result, tmp_path / "x", texts={"report.md": "x"})
        write_text(path / "more.json", "{}")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {0o666 & ~mask}
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~mask


KILLED = """
import os, signal, sys
from pathlib import Path
from prunus.deploy import atomic
path, when = Path(sys.argv[1]), sys.argv[2]
stop = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if when == "exchange":
    atomic._exchange = stop
if when == "between":
    atomic.ctypes.CDLL = lambda *_, **__: object()
    rename, done = Path.rename, []
    Path.rename = lambda self, to: done.append(rename(self, to)) if not done else stop()
if when == "sweep":
    atomic.shutil.rmtree = stop
with atomic.new_folder(path) as folder:
    (folder / atomic.MARK).write_text("new")
    if when == "writing":
        stop()
"""


@pytest.mark.parametrize(
    ("when", "left"), [("writing", "old"), ("exchange", "old"), ("sweep", "new"), ("between", None)]
)
def test_a_killed_process_leaves_the_old_folder_or_the_new_one(when: str, left: str | None, tmp_path: Path) -> None:
    path = tmp_path / "x"
    make(path, "old")
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), when],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        timeout=60,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) > (left is not None)  # it did leave something behind
    if left is not None:
        assert (path / MARK).read_text() == left
    else:
        # Only where folders cannot be exchanged: the next call puts the old one back, here one that fails.
        with pytest.raises(RuntimeError), new_folder(path):
            raise RuntimeError
        assert (path / MARK).read_text() == "old"
    make(path, "next")
    assert os.listdir(tmp_path) == ["x"] and (path / MARK).read_text() == "next"


def test_what_living_processes_are_writing_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "x") as mine:
        (mine / MARK).write_text("slow")
        make(tmp_path / "x", "quick")
        assert mine.is_dir()
    assert (tmp_path / "x" / MARK).read_text() == "slow"
    other = tmp_path / ".y.tmp-1-00000000"
    other.mkdir()
    make(tmp_path / "y", "mine")
    assert other.is_dir()
