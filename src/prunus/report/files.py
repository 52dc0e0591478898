"""Several files written together, or none of them."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prunus.core.errors import PrunusError

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "it may not be written by this user: choose another folder or change its permissions",
    errno.EPERM: "it may not be written by this user: choose another folder or change its permissions",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder",
    errno.EEXIST: "the path is a file, not a folder: choose another folder",
    errno.EISDIR: "a folder stands where the file should go: move it or choose another folder",
}


def write_together(folder: Path, texts: Mapping[str, str]) -> None:
    """Write `texts` (file name -> content) into `folder`: all complete and flushed to the disk, then renamed.

    Fails: `PrunusError` says which folder, why, and what to do; temporary files and new folders are gone by then, and
    files that were there before are unchanged unless the very last step, a rename, is what failed.
    """
    made: list[Path] = []
    staged: dict[Path, Path] = {}
    try:
        _make(folder, made)
        for name, text in texts.items():
            temporary = folder / f".{name}.{secrets.token_hex(6)}.tmp"
            staged[temporary] = folder / name
            _write(temporary, text.encode())
        for final in staged.values():
            if final.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
        for temporary, final in staged.items():
            temporary.replace(final)
        _flush(folder)
    except BaseException as error:
        for temporary in staged:
            with suppress(OSError):
                temporary.unlink()
        for path in reversed(made):
            with suppress(OSError):  # not empty: something else has come to live there
                path.rmdir()
        if not isinstance(error, OSError):
            raise
        why = _ADVICE.get(error.errno or 0, "choose another folder")
        raise PrunusError(
            f"cannot write {', '.join(texts)} into {folder}: {error.strerror or error}; {why}. "
            "Nothing was left half-written."
        ) from error


def _make(folder: Path, made: list[Path]) -> None:
    """mkdir -p that notes what it made."""
    missing = []
    path = folder
    while not path.exists():
        missing.append(path)
        path = path.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        made.append(path)
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))


def _write(path: Path, content: bytes) -> None:
    # os.open rather than tempfile: the file gets the user's umask, not 0600.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Make the renames themselves durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
