"""Weights in safetensors shards: read tensor by tensor, written shard by shard.

Tensors are read into memory of their own and not mapped, so that what was read once does not stay.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prunus.core.errors import DataError, Problems, VerificationError
from prunus.deploy.containers.bits import Bytes
from prunus.deploy.containers.grid import NAMES
from prunus.deploy.tensors import Entry, Place, TensorFile, bytes_of, write_tensors

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_SAMPLES = 32


class Checkpoint:
    """The weights of a folder, all headers checked before a tensor is read.

    Attributes:
        folder: the folder, never written to.
        entries: tensor name -> where it lies, in the order of the shards; shards may be symbolic links.
        taken: bytes of tensors that were read so far.

    Errors: `DataError` with everything that is wrong: no weights, an index that names what is not there or leads out
        of the folder, a header that `TensorFile` refuses, a shard that is shorter or longer than its header says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.taken = 0
        self.entries: dict[str, Place] = {}
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
        """A single shard, without an index. Errors: `VerificationError` for what is none."""
        made = cls.__new__(cls)
        made.taken, made.folder, made.entries = 0, shard.parent, TensorFile(shard).places
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
            found = TensorFile(path, links=True).places
        except VerificationError as error:
            problems.add(f"{error}; copy it again")
            return
        for tensor in sorted((wanted or set()) - set(found)):
            problems.add(f"{INDEX} says that {tensor} is in {name}, but it is not there")
        for tensor in sorted(set(found) & set(self.entries)):
            problems.add(f"{tensor} is in {self.entries[tensor].file.name} and in {name}")
        self.entries |= {t: e for t, e in found.items() if wanted is None or t in wanted}

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own. Errors: `VerificationError` where its shard has become shorter."""
        self.taken += self.entries[name].size
        return self.entries[name].tensor()

    def pieces(self, name: str) -> Iterator[Bytes]:
        """The bytes of a tensor, a piece at a time. Errors: as `read`."""
        self.taken += self.entries[name].size
        yield from self.entries[name].pieces()

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


def write_shard(path: Path, tensors: Mapping[str, Tensor | Checkpoint]) -> str:
    """Write a shard in one step; returns its SHA-256.

    Args:
        path: where to.
        tensors: name -> the tensor, or the checkpoint from which its bytes are copied as they are.

    Cost: the bytes once; nothing but a piece of what is copied is in memory. Flushed to the disk when it returns.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        entries = [_entry(name, value) for name, value in tensors.items()]
        sha = write_tensors(temporary, entries, {"format": "pt"}, durable=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return sha


def _entry(name: str, value: Tensor | Checkpoint) -> Entry:
    """What is written of a tensor, or copied."""
    if isinstance(value, Checkpoint):
        place = value.entries[name]
        copied: Callable[[], Iterator[Any]] = lambda: value.pieces(name)  # noqa: E731
        return Entry(name, place.dtype, place.shape, copied)
    return Entry(name, NAMES[value.dtype], tuple(value.shape), lambda: [bytes_of(value)] if value.numel() else [])
