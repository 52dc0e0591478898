"""Fetch data sets so that a broken connection never leaves half a file where the readers look.

Everything is written to a temporary folder beside its destination, checked there, and renamed into place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from prunus.core.errors import DataError, require

# The binary versions on the authors' page, with the MD5 sums printed there; the page's other versions are pickles.
CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CIFAR = {
    "cifar10": ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}
_CHUNK = 1 << 20


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A temporary folder on the file system of `root`, so that a rename out of it is atomic; removed in any case."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    except OSError as error:
        raise DataError(f"cannot write to {root} ({error.strerror}): give another folder as root") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(url: str, target: Path, *, md5: str) -> None:
    """Download one file, verify its MD5 sum, and move it to `target`; on any failure `target` is left as it was.

    MD5 is what the publishers print. It detects damage, not a forger.

    Raises:
        DataError: no connection, the connection ended early (with received and expected sizes), or the sum is another.
    """
    with _scratch(target.parent) as folder:
        part = folder / target.name
        received, expected = 0, None
        sha = hashlib.md5(usedforsecurity=False)
        try:
            with urllib.request.urlopen(url, timeout=30) as answer, part.open("wb") as out:
                length = answer.headers.get("Content-Length")
                expected = int(length) if length else None
                while chunk := answer.read(_CHUNK):
                    out.write(chunk)
                    sha.update(chunk)
                    received += len(chunk)
        except (urllib.error.URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise DataError(
                f"downloading {url} failed after {received} bytes ({reason}); nothing was kept, "
                f"try again or put the file at {target} yourself"
            ) from error
        if expected is not None and received != expected:
            raise DataError(
                f"downloading {url} was interrupted: received {received} bytes, expected {expected}; "
                "nothing was kept, try again"
            )
        if sha.hexdigest() != md5:
            raise DataError(
                f"{url} has MD5 {sha.hexdigest()}, expected {md5} ({received} bytes received); nothing was kept, "
                "try again, and if it persists the publisher changed the file"
            )
        os.replace(part, target)


def cifar(name: str, root: Path, folder: str) -> Path:
    """Download and unpack the binary version of CIFAR-10 or CIFAR-100 into `root / folder`.

    Raises:
        DataError: as `fetch`, or the archive cannot be unpacked.
    """
    url, md5 = _CIFAR[name]
    archive = root / url.rpartition("/")[2]
    fetch(url, archive, md5=md5)
    unpack(archive, root, folder)
    archive.unlink()
    return root / folder


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack a tar archive and move its `folder` to `root / folder`, all or nothing.

    Raises:
        DataError: the archive is damaged, reaches outside of itself, or has no such folder.
    """
    with _scratch(root) as scratch:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{archive} cannot be unpacked ({error}); delete it and fetch it again") from error
        if not (scratch / folder).is_dir():
            raise DataError(f"{archive} has no folder {folder}: it is another archive than expected")
        os.replace(scratch / folder, root / folder)


def through_torchvision(kind: str, root: Path, collect: Callable[[Path], Path], target: Path, **options: Any) -> Path:
    """Let `torchvision.datasets.<kind>` download into a temporary folder, then move the folder it filled to `target`.

    Args:
        collect: Given the temporary root, the folder that torchvision put the files into.

    Raises:
        DataError: no connection, or a file that is not what torchvision expects; nothing is kept.
        MissingExtraError: torchvision is not installed.
    """
    datasets = require("torchvision.datasets", extra="vision", why=f"downloading {kind} goes through it")
    with _scratch(root) as scratch:
        try:
            for choice in options.pop("splits", ({},)):
                getattr(datasets, kind)(str(scratch), download=True, **choice, **options)
        except (OSError, RuntimeError, HTTPException) as error:
            raise DataError(
                f"downloading {kind} failed ({error}); nothing was kept. Check the connection and try again, "
                f"or put its files into {target}"
            ) from error
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(collect(scratch), target)
    return target
