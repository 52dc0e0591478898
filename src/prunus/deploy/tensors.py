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


def write_tensors(path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> str:
    """Write a file; returns its SHA-256.

    Args:
        path: where to; a file that is there is overwritten, so write into a folder that is not in use yet.
        entries: what to write, in this order, each name once.
        metadata: texts for the header.

    Cost: every byte once; one piece is in memory. Errors: `SpecError` for a name that stands twice, `OSError`.
    """
    sha = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in _pieces(head_of(entries, metadata), entries):
            file.write(piece)
            sha.update(piece)
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
    """Where a tensor lies in a file: its type and shape, its first byte, and how many bytes it has."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile:
    """A safetensors file, its whole header checked before a tensor is read.

    Attributes:
        path: the file.
        places: tensor name -> where it lies.
        metadata: the texts of the header.

    Errors: `VerificationError` for what is no safetensors file, was cut off, says a name twice, knows no such type, or
        whose tensors overlap, leave gaps or do not have the sizes that their shapes say. Nothing is allocated that
        the file does not hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with open_plain(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(_HEADER, size - 8):
                raise VerificationError(f"{self.path} is no readable safetensors file: it has no whole header")
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
            raise VerificationError(f"{self.path} has {size:,} bytes, and its header tells of {end:,}")

    def _parsed(self, text: bytes) -> dict[str, Any]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                raise ValueError("a name stands twice")
            return found

        try:
            header = json.loads(text, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise VerificationError(f"{self.path} is no readable safetensors file: its header: {error}") from None
        if not isinstance(header, dict):
            raise VerificationError(f"{self.path} is no readable safetensors file: its header is no table")
        return header

    def _place(self, name: str, told: Any, start: int) -> Place:
        fields: dict[str, Any] = told if isinstance(told, dict) else {}
        dtype = str(fields.get("dtype"))
        shape, offsets = _whole(fields.get("shape")), _whole(fields.get("data_offsets"))
        if len(fields) != 3 or dtype not in DTYPES or shape is None or offsets is None or len(offsets) != 2:
            raise VerificationError(f"{self.path} describes {name} as {str(told)[:200]}, which is no tensor")
        if math.prod(shape) * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
            raise VerificationError(f"{self.path}: {name} of {tuple(shape)} {dtype} does not have the bytes of it")
        return Place(dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])

    def read(self, name: str) -> Bytes:
        """The bytes of a tensor, in memory of their own."""
        place = self.places[name]
        found = np.empty(place.size, np.uint8)
        view, done = found.data, 0
        with open_plain(self.path) as file:
            file.seek(place.start)
            while done < place.size and (n := file.readinto(view[done:])):
                done += n
        if done < place.size:
            raise VerificationError(f"{self.path} ended in the middle of {name}: it was changed since it was opened")
        return found

    def tensor(self, name: str) -> Tensor:
        """A tensor."""
        place = self.places[name]
        if not place.size:
            return torch.empty(place.shape, dtype=DTYPES[place.dtype])
        return torch.from_numpy(self.read(name)).view(DTYPES[place.dtype]).reshape(place.shape)


def _whole(numbers: Any) -> list[int] | None:
    """A list of numbers that places and sizes may be, or nothing."""
    if not isinstance(numbers, list) or len(numbers) > 64:
        return None
    return numbers if all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) else None


def open_plain(path: Path) -> BufferedReader:
    """Open a file that is no symbolic link: what a folder holds must lie in it.

    Errors: `VerificationError` for a link and for what is no file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise VerificationError(
                f"{path} is a symbolic link, which may lead out of its folder: copy the folder with the files in it"
            ) from error
        raise VerificationError(f"{path} cannot be read: {error.strerror}") from error
    file: BufferedReader = os.fdopen(handle, "rb")
    if not path.is_file():
        file.close()
        raise VerificationError(f"{path} is no file")
    return file
