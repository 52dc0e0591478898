"""The weights of a folder: every tensor in its container, in one safetensors file, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.core.errors import VerificationError
from prunus.deploy.containers.bits import Bytes
from prunus.deploy.containers.grid import Matrix
from prunus.deploy.containers.packing import VALUES, Packed, packed, unpack
from prunus.deploy.containers.spec import STREAMS, Coding, Spec
from prunus.deploy.tensors import Entry, TensorFile


@dataclass(frozen=True, eq=False)
class Laid:
    """Tensors as they will lie in a file.

    Attributes:
        entries: what is written.
        packed: name -> the container of each tensor that is not dense.
        dense: bytes of all tensors without containers.
        bound: bytes that the patterns and values of all tensors cannot do without; see `Spec.bound`.
    """

    entries: list[Entry]
    packed: dict[str, Packed]
    dense: int
    bound: int

    @property
    def stored(self) -> int:
        """Bytes of all streams."""
        return sum(e.size for e in self.entries)


class _Source:
    """Bit patterns of tensors, of one at a time."""

    def __init__(self, tensors: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> None:
        self._tensors, self._keep = tensors, keep
        self._name = ""
        self._matrix: Matrix | None = None

    def __call__(self, name: str) -> Matrix:
        if self._matrix is None or self._name != name:
            self._matrix = None  # before the next is made
            tensor, keep = self._tensors[name], self._keep.get(name)
            fits = keep is not None and keep.shape == tensor.shape
            self._name, self._matrix = name, Matrix(tensor, keep if fits else None)
        return self._matrix

    def of(self, name: str) -> Callable[[], Matrix]:
        return lambda: self(name)


def lay(
    tensors: Mapping[str, Tensor],
    *,
    keep: Mapping[str, Tensor] | None = None,
    sparse: bool | Sequence[Coding] = True,
) -> Laid:
    """Choose the container of every tensor; nothing is written yet.

    Args:
        tensors: name -> tensor; it may make them when they are asked for, and is asked two or three times for each.
        keep: masks of what pruning left; see `pack`.
        sparse: False leaves all of them dense; codings limit the choice.

    Cost: that of `choose` for each; one tensor at a time is held. Errors: `SpecError` for a type that no file holds.
    """
    source = _Source(tensors, keep or {})
    only = () if sparse is False else None if sparse is True else tuple(sparse)
    entries: list[tuple[int, Entry]] = []
    chosen: dict[str, Packed] = {}
    dense = bound = 0
    for name in tensors:
        taken = any(f"{name}.{stream}" in tensors for every in STREAMS.values() for stream in (*every, VALUES))
        made = packed(source.of(name), only=() if taken else only, name=name)
        if made.spec.coding != "dense":
            chosen[name] = made
        entries += _entries(name, made)
        dense += made.spec.count * made.spec.item
        bound += made.spec.bound()
    # Large items first, so that every tensor lies at a multiple of its item.
    entries.sort(key=lambda pair: -pair[0])
    return Laid([e for _, e in entries], chosen, dense, bound)


def _entries(name: str, made: Packed) -> list[tuple[int, Entry]]:
    spec = made.spec
    if spec.coding == "dense":
        return [(spec.item, Entry(name, spec.dtype, spec.shape, made.values))]
    shape = (spec.kept,) if spec.block == (1, 1) else (spec.kept, *spec.block)
    streams = [
        Entry(f"{name}.{stream}", "U8", (size,), partial(_stream_of, made, stream))
        for stream, size in made.sizes.items()
    ]
    return [(spec.item, e) for e in [*streams, Entry(f"{name}.{VALUES}", spec.dtype, shape, made.values)]]


def _stream_of(made: Packed, stream: str) -> list[Bytes]:
    return [np.frombuffer(made.masks()[stream], np.uint8)]


class Weights:
    """The tensors of a file, dense and packed alike, by their own names.

    Args:
        file: the file.
        packed: name -> the container of each tensor that is packed in it.

    Attributes:
        shapes: name -> shape, as the file says it; nothing was allocated for that yet.

    Errors: `VerificationError` where streams are missing or of another size than their container's.
    """

    def __init__(self, file: TensorFile, packed: Mapping[str, Spec]) -> None:
        self.file, self.packed = file, packed
        streams = {f"{name}.{stream}": name for name, spec in packed.items() for stream in spec.streams}
        self.shapes = {n: p.shape for n, p in file.places.items() if n not in streams}
        for name, spec in packed.items():
            if name in self.shapes or spec.coding == "dense":
                raise VerificationError(f"{file.path} holds {name} in a container and as it is")
            values = file.places.get(f"{name}.{VALUES}")
            missing = [s for s in spec.streams if f"{name}.{s}" not in file.places]
            if missing or values is None or values.dtype != spec.dtype or values.size != spec.values * spec.item:
                raise VerificationError(f"{file.path} does not hold the container of {name} that the manifest says")
            self.shapes[name] = spec.shape

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor, of the shape that it must have."""
        if self.shapes[name] != tuple(shape):
            raise VerificationError(f"{name} is {self.shapes[name]} in {self.file.path} and should be {tuple(shape)}")
        if name not in self.packed:
            return self.file.tensor(name)
        spec = self.packed[name]
        streams = {s: self.file.read(f"{name}.{s}") for s in spec.streams}
        return unpack(spec, streams, shape, name=f"{name} in {self.file.path}")

    def mask(self, name: str) -> Tensor:
        """Which entries of a packed tensor hold anything: bool of its shape. Errors: `VerificationError` where it
        claims more memory than is free.
        """
        spec = self.packed[name]
        check_claim(f"{name} in {self.file.path}", spec.count * (1 + spec.item), free_memory())
        return torch.from_numpy(Matrix(self.tensor(name, spec.shape)).bits != 0).reshape(spec.shape)

    def bytes_of(self, name: str) -> int:
        """Bytes of a tensor as it is unpacked."""
        if name in self.packed:
            return self.packed[name].count * self.packed[name].item
        return self.file.places[name].size

    def dtype_of(self, name: str) -> str:
        """The type, as safetensors names it."""
        return self.packed[name].dtype if name in self.packed else self.file.places[name].dtype


def check_claim(name: str, size: int, limit: int) -> None:
    """Refuse what a file only claims: a container of a few bytes can say any size. Errors: `VerificationError`."""
    if size > limit:
        raise VerificationError(
            f"{name} is said to take {size:,} bytes, more than the {limit:,} that it may take here: only if you trust "
            f"the folder, give it more memory, or raise the limit where there is one"
        )


def free_memory() -> int:
    """Bytes of memory that are free, or all that there are where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return 1 << 34


def packed_bits(mask: Tensor) -> Iterator[Any]:
    """Eight masks to a byte, lowest bit first, in pieces."""
    flat = mask.detach().cpu().contiguous().reshape(-1).numpy()
    step = 1 << 23
    for i in range(0, flat.size, step):
        yield np.packbits(flat[i : i + step], bitorder="little")


def mask_entries(masks: Mapping[str, Tensor]) -> list[Entry]:
    """Masks as they lie in a file: a bit for each unit."""
    return [Entry(n, "U8", (-(-m.numel() // 8),), partial(packed_bits, m)) for n, m in masks.items()]


def nonzero_of(matrix: Matrix, mask: Tensor) -> bool:
    """Whether a mask, read row by row, marks exactly the entries that hold anything."""
    flat = mask.detach().cpu().contiguous().reshape(-1).numpy()
    if flat.size != matrix.bits.size:
        return False
    rows = flat.reshape(matrix.bits.shape)
    return all(np.array_equal(matrix.nonzero(a, b), rows[a:b]) for a, b in matrix.pieces())
