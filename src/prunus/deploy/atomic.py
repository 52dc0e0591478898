"""Writing so that a reader sees all of it or nothing."""

import ctypes
import functools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from prunus.core.errors import PrunusError, SpecError

MARK = "pruning.json"
P = ParamSpec("P")
R = TypeVar("R")
_AT_CWD, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


@contextmanager
def new_folder(path: Path, *, mark: str = MARK, needs: int = 0) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends without an exception.

    An existing folder is replaced only if it is empty or holds `mark` (so it is one of ours). Everything is flushed to
    the disk first. The two folders are then exchanged in one step where the system can (Linux), so that a killed
    process leaves the old folder or the new one. On any failure the old folder stays, and the temporary one and parent
    folders made for it are removed. What killed processes left beside `path` is removed, or put back if it is all
    there is.

    needs: bytes that will be written at least; where the disk has fewer, nothing is begun.
    Errors: `SpecError` for a folder that is not ours, `PrunusError` where writing fails.
    """
    path = Path(path)
    check_replaceable(path, mark=mark)
    check_space(path.absolute().parent, needs)
    made: list[Path] = []
    try:
        try:
            _make(path.parent, made)
            _sweep(path)
            temporary = path.parent / f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            temporary.mkdir()
        except OSError as error:
            raise PrunusError(
                f"cannot write to {path.parent}: {error.strerror or error}. Choose a folder you may write to"
            ) from error
        try:
            yield temporary
            _settle(temporary)
            _exchange(temporary, path)
            made.clear()
            _sync(path.parent)
        except OSError as error:
            raise PrunusError(
                f"could not write {path}: {error.strerror or error}. Nothing was left behind; free space or choose "
                f"another place"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # something else has come to live there
                folder.rmdir()


def check_replaceable(path: Path, *, mark: str = MARK) -> None:
    """Refuse a place that may not be written: a file, a link, or a folder with content that is not ours. Changes
    nothing.

    Errors: `SpecError`; and those of `check_writable`.
    """
    path = Path(path)
    if path.is_symlink():
        raise SpecError(f"{path} is a symbolic link: name the folder itself, {path.resolve()}")
    try:
        taken = path.exists()
        foreign = taken and (not path.is_dir() or (any(path.iterdir()) and not (path / mark).is_file()))
    except OSError as error:
        raise PrunusError(f"cannot look at {path}: {error.strerror or error}. Choose another folder") from error
    if foreign:
        raise SpecError(f"{path} exists and is no folder that prunus wrote: choose another place or remove it first")
    check_writable(path.absolute().parent)


def check_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be made: it, or its nearest parent that exists, is a file or read-only.

    Changes nothing. Errors: `PrunusError`.
    """
    found = Path(folder).absolute()
    while not found.exists():
        found = found.parent
    if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
        why = "it may not be written to" if found.is_dir() else "it is a file"
        raise PrunusError(f"cannot write to {folder}: {found}: {why}. Choose a folder you may write to")


def check_space(folder: Path, needs: int) -> None:
    """Refuse to begin what the disk has no room for. `needs`: bytes. Errors: `PrunusError`."""
    found = Path(folder).absolute()
    while not found.exists():
        found = found.parent
    free = shutil.disk_usage(found).free
    if free < needs:
        raise PrunusError(f"{folder} needs {needs:,} bytes, and {free:,} are free: free space or choose another place")


def disk_told(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with what the system says of files and disks raised as `PrunusError`. For those that write into a
    temporary folder, so that nothing is left behind.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise PrunusError(
                f"could not write what was asked for: {error.strerror or error}{where}. Nothing was left behind; free "
                f"space or choose another place"
            ) from error

    return run


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step, with the permissions any other new file would get."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step, with the permissions any other new file would get.

    Errors: `PrunusError`; what was there is unchanged then.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise PrunusError(f"could not write {path}: {error.strerror or error}. What was there is unchanged") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _make(folder: Path, made: list[Path]) -> None:
    """mkdir -p that notes what it made."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        made.append(one)
    if not folder.is_dir():
        raise NotADirectoryError(20, f"{folder} is a file")


def _sweep(path: Path) -> None:
    """Remove what dead processes left of their attempts to write `path`."""
    pattern = re.compile(re.escape(f".{path.name}.tmp-") + r"(\d+)-[0-9a-f]{8}(\.old)?")
    for left in list(path.parent.iterdir()):
        match = pattern.fullmatch(left.name)
        if match is None or _alive(int(match[1])):
            continue
        if match[2] and not path.exists():
            left.rename(path)  # killed between the two renames: this is the folder that was to be replaced
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _exchange(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`; what was at `path` lies at `new` afterwards, or is gone."""
    if not path.exists():
        new.rename(path)
        return
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None and rename(_AT_CWD, os.fsencode(new), _AT_CWD, os.fsencode(path), _EXCHANGE) == 0:
        return
    # Another system, or a file system that cannot exchange: the gap between two renames is as short as it gets.
    old = new.with_name(new.name + ".old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _settle(folder: Path) -> None:
    """Flush every file, and give it the mode that any other new file would get (safetensors writes 0600)."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)
            _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
