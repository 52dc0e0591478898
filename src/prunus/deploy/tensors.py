"""safetensors files, written a piece at a time and read a tensor at a time, every header checked first.

The format is 8 bytes with the length of a header, a JSON header with types, shapes and offsets, and the bytes of the
tensors. safetensors' own writer wants all tensors in memory at once, and its reader takes a name that stands in the
header twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.core.errors import SpecError, VerificationError
from prunus.deploy.containers.bits import Bytes
from prunus.deploy.containers.grid import DTYPES
from prunus.deploy.containers.spec import ITEM_BYTES

_HEADER = 100_000_000  # the format's own limit
_COPY = 1 << 24


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written.

    Attributes:
        name, dtype, shape: as the header says them.
        pieces: gives its bytes, in pieces, when it is written.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Any]]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_tensors(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], *, durable: bool = False) -> str:
    """Write a file; returns its SHA-256.

    Args:
        path: where to; a file that is there is overwritten, so write into a folder that is not in use yet.
        entries: what to write, in this order, each name once.
        metadata: texts for the header.
        durable: it is on the disk when this returns, and not only on its way.

    Cost: every byte once; one piece is in memory. Errors: `SpecError` for a name that stands twice, `OSError`.
    """
    sha = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in _pieces(head_of(entries, metadata), entries):
            file.write(piece)
            sha.update(piece)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    return sha.hexdigest()


def head_of(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors. Errors: `SpecError` for a name that stands twice."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for entry in entries:
        if entry.name in header:
            raise SpecError(f"{entry.name} would stand in the file twice: rename that tensor")
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [place, place := place + entry.size],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(head: bytes, entries: Iterable[Entry]) -> Iterator[Any]:
    yield head
    for entry in entries:
        left = entry.size
        for piece in entry.pieces():
            view = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            for i in range(0, len(view), _COPY):
                yield view[i : i + _COPY]
            left -= len(view)
            del piece, view  # before the next tensor is made
        if left:
            raise SpecError(f"{entry.name} changed while it was written: leave the model alone until save returns")


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        file: the file.
        dtype, shape: as its header says them.
        start, size: its first byte, counted from the beginning of the file, and how many bytes it has.
        links: whether the file may be a symbolic link, as in the folders of download caches.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int
    links: bool = False

    def read(self) -> Bytes:
        """The bytes, in memory of their own. Errors: `VerificationError` where the file has become shorter."""
        found: Bytes = torch.empty(self.size, dtype=torch.uint8).numpy()  # laid as torch wants it
        view, done = found.data, 0
        with open_plain(self.file, links=self.links) as file:
            file.seek(self.start)
            while done < self.size and (n := file.readinto(view[done:])):
                done += n
        self._whole(done)
        return found

    def pieces(self) -> Iterator[Bytes]:
        """The bytes, a piece at a time. Errors: as `read`."""
        done = 0
        with open_plain(self.file, links=self.links) as file:
            file.seek(self.start)
            while done < self.size and (piece := file.read(min(self.size - done, _COPY))):
                done += len(piece)
                yield np.frombuffer(piece, np.uint8)
        self._whole(done)

    def tensor(self) -> Tensor:
        """The tensor, in memory of its own."""
        if not self.size:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.from_numpy(self.read()).view(DTYPES[self.dtype]).reshape(self.shape)

    def _whole(self, done: int) -> None:
        if done < self.size:
            raise VerificationError(
                f"{self.file} ended in the middle of a tensor of {self.shape}: it was changed since it was opened"
            )


class TensorFile:
    """A safetensors file, its whole header checked before a tensor is read.

    Attributes:
        path: the file; it may be a symbolic link only if `links` says so.
        places: tensor name -> where it lies.
        metadata: the texts of the header.

    Errors: `VerificationError` for what is no safetensors file, was cut off, says a name twice, knows no such type, or
        whose tensors overlap, leave gaps or do not have the sizes that their shapes say. Nothing is allocated that
        the file does not hold.
    """

    def __init__(self, path: Path, *, links: bool = False) -> None:
        self.path, self.links = Path(path), links
        with open_plain(self.path, links=links) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(_HEADER, size - 8):
                raise VerificationError(f"{self.path} is no safetensors file, or was cut off in its header")
            text = file.read(length)
        header = self._parsed(text)
        told = header.pop("__metadata__", {})
        self.metadata: dict[str, str] = told if isinstance(told, dict) else {}
        self.places: dict[str, Place] = {}
        for name, one in header.items():
            self.places[name] = self._place(name, one, 8 + length)
        end = 8 + length
        for name, place in sorted(self.places.items(), key=lambda pair: (pair[1].start, pair[1].size)):
            if place.start != end:
                raise VerificationError(f"{self.path}: {name} does not begin where the tensor before it ends")
            end += place.size
        if end != size:
            what = "was cut off: it has" if size < end else "has"
            raise VerificationError(f"{self.path} {what} {size:,} bytes, and its header tells of {end:,}")

    def _parsed(self, text: bytes) -> dict[str, Any]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                raise ValueError("a name stands twice")
            return found

        try:
            header = json.loads(text, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise VerificationError(f"{self.path} is no safetensors file: its header: {error}") from None
        if not isinstance(header, dict):
            raise VerificationError(f"{self.path} is no safetensors file: its header is no table")
        return header

    def _place(self, name: str, told: Any, start: int) -> Place:
        fields: dict[str, Any] = told if isinstance(told, dict) else {}
        dtype = str(fields.get("dtype"))
        shape, offsets = _whole(fields.get("shape")), _whole(fields.get("data_offsets"))
        described = len(fields) == 3 and type(fields.get("dtype")) is str
        if not described or shape is None or offsets is None or len(offsets) != 2:
            raise VerificationError(f"{self.path} describes {name} as {str(told)[:200]}, which is no tensor")
        if dtype not in DTYPES:
            raise VerificationError(f"{self.path}: {name} is of type {dtype[:40]}, which is not known: convert it")
        if math.prod(shape) * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
            raise VerificationError(f"{self.path}: {name} of {tuple(shape)} {dtype} does not have the bytes of it")
        return Place(self.path, dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0], self.links)

    def read(self, name: str) -> Bytes:
        """The bytes of a tensor, in memory of their own."""
        return self.places[name].read()

    def tensor(self, name: str) -> Tensor:
        """A tensor."""
        return self.places[name].tensor()


def _whole(numbers: Any) -> list[int] | None:
    """A list of numbers that places and sizes may be, or nothing."""
    if not isinstance(numbers, list) or len(numbers) > 64:
        return None
    return numbers if all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) else None


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes in its own order; no copy where it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def open_plain(path: Path, *, links: bool = False) -> BufferedReader:
    """Open a file that is no symbolic link: what a folder holds must lie in it.

    Args:
        path: the file.
        links: take links too, for folders that are only read, such as those of download caches.

    Errors: `VerificationError` for a link and for what is no file.
    """
    stays = 0 if links else getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, os.O_RDONLY | stays | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink() and not links:
            raise VerificationError(
                f"{path} is a symbolic link, which may lead out of its folder: copy the folder with the files in it"
            ) from error
        raise VerificationError(f"{path} cannot be read: {error.strerror}") from error
    file: BufferedReader = os.fdopen(handle, "rb")
    if not path.is_file():
        file.close()
        raise VerificationError(f"{path} is no file")
    return file
