"""Weights in safetensors shards: read tensor by tensor, written shard by shard.

Tensors are read into memory of their own and not mapped, so that what was read once does not stay. The format is 8
bytes with the length of a header, a JSON header with types, shapes and offsets, and the bytes of the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import DataError, Problems

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_HEADER = 100_000_000  # the format's own limit
_CHUNK = 1 << 24
_SAMPLES = 32
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        file: the shard.
        dtype: as the format names it (`BF16`).
        shape: its shape.
        start: its first byte, counted from the beginning of the file.
        size: how many bytes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class Checkpoint:
    """The weights of a folder, all headers checked before a tensor is read.

    Attributes:
        folder: the folder, never written to.
        entries: tensor name -> where it lies, in the order of the shards.
        taken: bytes of tensors that were read so far.

    Errors: `DataError` with everything that is wrong: no weights, an index that names what is not there or leads out
        of the folder, a header that is no header, a shard that is shorter or longer than its header says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.taken = 0
        self.entries: dict[str, Entry] = {}
        problems = Problems(f"{self.folder} cannot be read")
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is no folder: pass one with config.json and *.safetensors")
        if (self.folder / INDEX).is_file():
            wanted = self._index(problems)
        elif (self.folder / SINGLE).is_file():
            wanted = {SINGLE: None}
        else:
            wanted = {}
            problems.add(f"it has neither {INDEX} nor {SINGLE}{self._pickles()}")
        for name, tensors in wanted.items():
            self._shard(name, tensors, problems)
        problems.raise_if_any(DataError)

    @classmethod
    def of(cls, shard: Path) -> Checkpoint:
        """A single shard, without an index."""
        made = cls.__new__(cls)
        made.taken, made.folder, made.entries = 0, shard.parent, dict(_entries(shard, *header_of(shard)))
        return made

    def _pickles(self) -> str:
        found = sorted(p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        return f"; {found[0]} is a pickle, which can run code: convert it to safetensors first" if found else ""

    def _index(self, problems: Problems) -> dict[str, set[str] | None]:
        """Shard name -> the tensors that the index says it holds."""
        wanted: dict[str, set[str] | None] = {}
        try:
            table = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            pairs = [(str(k), str(v)) for k, v in table.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.add(f"{INDEX} is no index of shards ({error}): copy it again")
            return wanted
        for tensor, shard in pairs:
            if Path(shard).name != shard or shard in ("", ".", "..") or not shard.endswith(".safetensors"):
                problems.add(f"{INDEX} puts {tensor} into {shard!r}, which is no name of a shard in this folder")
                continue
            held = wanted.setdefault(shard, set())
            assert held is not None
            held.add(tensor)
        return wanted

    def _shard(self, name: str, wanted: set[str] | None, problems: Problems) -> None:
        path = self.folder / name
        if not path.is_file():
            problems.add(f"{name} is missing: copy it again")
            return
        try:
            header, start = header_of(path)
            found = dict(_entries(path, header, start))
        except DataError as error:
            problems.add(str(error))
            return
        for tensor in sorted((wanted or set()) - set(found)):
            problems.add(f"{INDEX} says that {tensor} is in {name}, but it is not there")
        for tensor in sorted(set(found) & set(self.entries)):
            problems.add(f"{tensor} is in {self.entries[tensor].file.name} and in {name}")
        self.entries |= {t: e for t, e in found.items() if wanted is None or t in wanted}

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        entry = self.entries[name]
        self.taken += entry.size
        data = torch.empty(entry.size, dtype=torch.uint8)
        with open(entry.file, "rb", buffering=0) as file:
            file.seek(entry.start)
            view = data.numpy().data if entry.size else memoryview(b"")
            read = 0
            while read < entry.size and (n := file.readinto(view[read:])):
                read += n
        if read < entry.size:
            raise DataError(f"{entry.file.name} ended in the middle of {name}: it was changed since it was opened")
        return data.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor, a piece at a time."""
        entry = self.entries[name]
        self.taken += entry.size
        with open(entry.file, "rb") as file:
            file.seek(entry.start)
            left = entry.size
            while left:
                piece = file.read(min(left, _CHUNK))
                if not piece:
                    raise DataError(f"{entry.file.name} ended in the middle of {name}: it was changed meanwhile")
                left -= len(piece)
                yield piece

    @property
    def bytes(self) -> int:
        """All tensors together."""
        return sum(e.size for e in self.entries.values())

    def digest(self) -> str:
        """SHA-256 of all headers and of samples of every shard: tells one model from another without reading it."""
        sha = hashlib.sha256()
        for path in sorted({e.file for e in self.entries.values()}):
            size = path.stat().st_size
            sha.update(f"{path.name} {size}\n".encode())
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                sha.update(file.read(length))
                for i in range(_SAMPLES):
                    file.seek(8 + length + (size - 8 - length) * i // _SAMPLES)
                    sha.update(file.read(4096))
        return sha.hexdigest()


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """A shard's header and where its tensors begin.

    Errors: `DataError`.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_HEADER, size - 8):
            raise DataError(f"{path.name} is no safetensors file, or was cut off in its header: copy it again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise DataError(f"{path.name} has a header that is no JSON ({error}): copy it again") from None
    if not isinstance(header, dict):
        raise DataError(f"{path.name} has a header that is no table: copy it again")
    return header, 8 + length


def _entries(path: Path, header: Mapping[str, Any], start: int) -> Iterator[tuple[str, Entry]]:
    size = path.stat().st_size - start
    end = 0
    for name, told in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = (int(n) for n in told["data_offsets"])
            shape, dtype = tuple(int(n) for n in told["shape"]), str(told["dtype"])
        except (TypeError, KeyError, ValueError):
            raise DataError(f"{path.name} describes {name} in no known way: copy it again") from None
        if dtype not in DTYPES:
            raise DataError(f"{path.name}: {name} is of type {dtype}, which is not known: convert it to BF16 or F32")
        count = DTYPES[dtype].itemsize
        for n in shape:
            count *= n
        if not 0 <= first <= last <= size or min((0, *shape)) < 0 or last - first != count:
            raise DataError(
                f"{path.name} was cut off or changed: {name} of {shape} {dtype} does not lie at {first} to {last} of "
                f"{size} bytes; copy it again"
            )
        end = max(end, last)
        yield name, Entry(path, dtype, shape, start + first, last - first)
    if end != size:
        raise DataError(f"{path.name} holds {size} bytes of tensors, and its header tells of {end}: copy it again")


def write_shard(path: Path, tensors: Mapping[str, Tensor | Checkpoint]) -> str:
    """Write a shard in one step; returns its SHA-256.

    Args:
        path: where to.
        tensors: name -> the tensor, or the checkpoint from which its bytes are copied as they are.

    Cost: the bytes once; nothing but a piece of what is copied is in memory. Flushed to the disk when it returns.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, value in tensors.items():
        if isinstance(value, Checkpoint):
            dtype, shape, size = (e := value.entries[name]).dtype, e.shape, e.size
        else:
            dtype, shape, size = _NAMES[value.dtype], tuple(value.shape), value.numel() * value.itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sha = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            for piece in _pieces(len(text).to_bytes(8, "little") + text, tensors):
                file.write(piece)
                sha.update(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return sha.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes in its own order; no copy where it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _pieces(head: bytes, tensors: Mapping[str, Tensor | Checkpoint]) -> Iterator[bytes | memoryview]:
    yield head
    for name, value in tensors.items():
        if isinstance(value, Checkpoint):
            yield from value.chunks(name)
        elif value.numel():
            yield bytes_of(value)
