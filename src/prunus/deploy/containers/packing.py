"""A tensor as a container, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.core.errors import SpecError, VerificationError
from prunus.deploy.containers.bits import Bytes
from prunus.deploy.containers.choice import choose
from prunus.deploy.containers.codings import CODES, Broken
from prunus.deploy.containers.grid import DTYPES, Matrix, integers_of
from prunus.deploy.containers.spec import CODINGS, Coding, Spec

VALUES = "values"


@dataclass(frozen=True, eq=False)
class Packed:
    """The container that was chosen for a tensor. Its streams are made when they are asked for.

    Attributes:
        spec: the container.
        sizes: bytes of every stream but the values, filled up to whole entries so that the values lie straight.
        source: gives what it is made of.
    """

    spec: Spec
    sizes: dict[str, int]
    source: Callable[[], Matrix]

    @property
    def size(self) -> int:
        """Bytes of all streams."""
        return sum(self.sizes.values()) + self.spec.values * self.spec.item

    def masks(self) -> dict[str, bytes]:
        """The streams but the values. Cost: one pass; at most a bit or two for every block is in memory."""
        if self.spec.coding == "dense":
            return {}
        units = (u for _, _, u in self.source().units(self.spec.block))
        made = CODES[self.spec.coding].write(self.spec, units)
        return {name: stream.ljust(self.sizes[name], b"\0") for name, stream in made.items()}

    def values(self) -> Iterator[NDArray[Any]]:
        """The stored entries as bit patterns, in pieces. Cost: one pass."""
        matrix = self.source()
        if self.spec.coding == "dense":
            yield matrix.bits.reshape(-1)
            return
        code = CODES[self.spec.coding]
        for start, stop, units in matrix.units(self.spec.block):
            yield from matrix.values(start, stop, code.filled(self.spec, units), self.spec.block)

    def streams(self) -> dict[str, Bytes]:
        """All streams, by name, in memory."""
        found = {name: np.frombuffer(stream, np.uint8) for name, stream in self.masks().items()}
        pieces = [np.ascontiguousarray(v).view(np.uint8) for v in self.values()]
        return found | {VALUES: np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)}


def pack(tensor: Tensor, *, keep: Tensor | None = None, only: Sequence[Coding] | None = None, name: str = "") -> Packed:
    """The smallest container of a tensor; dense where none is smaller.

    Args:
        tensor: of any type that safetensors knows, on any device.
        keep: bool of its shape. Where it is False, a negative zero is the zero that pruning put there and comes back
            as 0.0; all other values come back bit for bit.
        only: the codings to choose from (`CODINGS`), all by default; without "dense", the smallest of those named.
        name: the tensor's name, whose length the file pays for with every stream.

    Cost: see `choose`; temporaries of some megabytes, and a copy where the tensor is not contiguous or on a device.
    Errors: `SpecError` for a type that no file holds or an unknown coding.
    """
    matrix = Matrix(tensor, keep)
    return packed(lambda: matrix, only=only, name=name)


def packed(source: Callable[[], Matrix], *, only: Sequence[Coding] | None = None, name: str = "") -> Packed:
    """The same of what `source` gives, now and again whenever streams are made. Errors: `SpecError`."""
    unknown = sorted(set(only or ()) - set(CODINGS))
    if unknown:
        raise SpecError(f"there is no coding {', '.join(unknown)}: choose from {', '.join(CODINGS)}")
    spec, sizes = choose(source(), only=only, name=name)
    return Packed(spec, {n: -(-size // spec.item) * spec.item for n, size in sizes.items()}, source)


def unpack(spec: Spec, streams: Mapping[str, Bytes], shape: tuple[int, ...], *, name: str = "a tensor") -> Tensor:
    """The tensor of a container.

    Args:
        spec: the container, which may come from a file that nobody vouches for.
        streams: stream name -> its bytes.
        shape: what the tensor must have; compared before anything is allocated.
        name: for messages.

    Cost: the tensor and a byte for each of its blocks. Errors: `VerificationError`.
    """
    if spec.shape != tuple(shape):
        raise VerificationError(f"{name} is {spec.shape} in its container, and should be {tuple(shape)}")
    values = streams[VALUES]
    if len(values) != spec.values * spec.item:
        raise VerificationError(f"{name} has {len(values):,} bytes of values, and its container says {spec.values:,}")
    kind = torch.empty(0, dtype=DTYPES[spec.dtype])
    flat = values.view(integers_of(kind).dtype)
    if not spec.count:
        return torch.empty(spec.shape, dtype=kind.dtype)
    if spec.coding == "dense":
        return torch.from_numpy(flat.view(np.uint8).copy()).view(kind.dtype).reshape(spec.shape)
    try:
        mask = CODES[spec.coding].read(spec, streams)
    except Broken as error:
        raise VerificationError(f"{name} cannot be unpacked: {error}; it was not written by prunus") from error
    tensor = torch.zeros(spec.shape, dtype=kind.dtype)
    bits = integers_of(tensor).reshape(spec.matrix)
    if spec.block == (1, 1):
        bits[mask] = flat
        return tensor
    high, wide = spec.block
    tiles = bits.reshape(mask.shape[0], high, mask.shape[1], wide)
    rows, columns = np.nonzero(mask)
    tiles[rows, :, columns, :] = flat.reshape(-1, high, wide)
    return tensor
