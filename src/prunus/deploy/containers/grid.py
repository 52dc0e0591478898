"""A tensor as a matrix of bit patterns, cut into blocks, looked at some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.deploy.containers.bits import Bools
from prunus.deploy.containers.spec import matrix_of

Block = tuple[int, int]
PIECE = 1 << 18
"""Entries that are looked at in one piece, so that no temporary is as large as the tensor."""
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_INTEGERS: dict[int, tuple[torch.dtype, Any]] = {
    1: (torch.uint8, np.uint8),
    2: (torch.int16, np.uint16),
    4: (torch.int32, np.uint32),
    8: (torch.int64, np.uint64),
}
_TALL = 32  # pieces have a multiple of so many rows: what the heights of blocks divide


def integers_of(tensor: Tensor) -> NDArray[Any]:
    """The bit patterns of a tensor, flat; no copy where it is contiguous and on the CPU."""
    signed, unsigned = _INTEGERS[tensor.element_size()]
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten().view(signed)
    found: NDArray[Any] = flat.numpy().view(unsigned)
    return found


class Matrix:
    """The bit patterns of a tensor, and which of its entries hold anything.

    Args:
        tensor: of any type that safetensors knows.
        keep: bool of its shape; where it is False a negative zero counts as the zero that pruning put there.

    An entry is zero where all its bits are: elsewhere -0.0 is a value like any other, and so is NaN.
    Errors: `SpecError` for another type.
    """

    def __init__(self, tensor: Tensor, keep: Tensor | None = None) -> None:
        if tensor.dtype not in NAMES:
            raise SpecError(f"a tensor of {tensor.dtype} cannot be saved: safetensors has no such type, convert it")
        self.shape, self.dtype = tuple(tensor.shape), NAMES[tensor.dtype]
        self.rows, self.columns = matrix_of(self.shape)
        self.bits = integers_of(tensor).reshape(self.rows, self.columns)
        signed = keep is not None and tensor.is_floating_point()
        self._keep = None if keep is None or not signed else keep.cpu().contiguous().numpy().reshape(self.bits.shape)
        self._minus = self.bits.dtype.type(1 << (8 * self.bits.itemsize - 1))
        self._step = max(1, PIECE // max(1, self.columns) // _TALL) * _TALL

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows."""
        for start in range(0, self.rows, self._step):
            yield start, min(self.rows, start + self._step)

    def nonzero(self, start: int, stop: int) -> Bools:
        """Which entries of some rows hold anything."""
        bits = self.bits[start:stop]
        found: Bools = bits != 0
        if self._keep is not None:
            found &= self._keep[start:stop] | (bits != self._minus)
        return found

    def units(self, block: Block) -> Iterator[tuple[int, int, Bools]]:
        """Ranges of rows with the blocks in them that hold anything, `[rows of blocks, columns of blocks]`.

        Blocks are of all rows, or their height divides 32 and the number of rows.
        """
        if block[0] < self.rows or block[0] == 1:
            for start, stop in self.pieces():
                yield start, stop, reduced(self.nonzero(start, stop), block)
            return
        found = np.zeros((1, self.columns // block[1]), np.bool_)
        for start, stop in self.pieces():
            found |= reduced(self.nonzero(start, stop), (stop - start, block[1]))
        yield 0, self.rows, found

    def values(self, start: int, stop: int, units: Bools, block: Block) -> Iterator[NDArray[Any]]:
        """The entries of the blocks marked in `units`, block by block, each row by row, in pieces."""
        if block == (1, 1):
            yield self._clean(
                self.bits[start:stop][units], None if self._keep is None else self._keep[start:stop][units]
            )
            return
        shape = (units.shape[0], block[0], units.shape[1], block[1])
        tiles, keep = self.bits[start:stop].reshape(shape), None
        rows, columns = np.nonzero(units)
        step = max(1, PIECE // math.prod(block))
        for i in range(0, len(rows), step):
            at = (rows[i : i + step], slice(None), columns[i : i + step])
            if self._keep is not None:
                keep = self._keep[start:stop].reshape(shape)[at]
            yield self._clean(tiles[at], keep).reshape(-1)

    def _clean(self, bits: NDArray[Any], keep: Bools | None) -> NDArray[Any]:
        """The same without the negative zeros of pruning."""
        if keep is not None:
            bits[~keep & (bits == self._minus)] = 0
        return bits


def reduced(found: Bools, block: Block) -> Bools:
    """Which blocks hold a True."""
    high, wide = block
    if wide > 1:
        found = _any_of(found.reshape(len(found), -1, wide))
    if high > 1:
        return np.asarray(found.reshape(-1, high, found.shape[1]).any(axis=1), dtype=np.bool_)
    return found


def _any_of(found: Bools) -> Bools:
    """Whether there is a True along the last axis."""
    wide = found.shape[-1]
    if wide > 64:
        return np.asarray(found.any(axis=-1), dtype=np.bool_)
    joined = found[..., 0].copy()  # numpy is slow where the axis that it reduces is short
    for i in range(1, wide):
        joined |= found[..., i]
    return joined


def block_sizes(shape: Sequence[int]) -> list[Block]:
    """The block sizes to try on a tensor: single entries, 4, 8, 16 or 32 rows, columns or both, rows and columns as a
    whole, and kernels of convolutions; those that cover it.
    """
    rows, columns = matrix_of(tuple(shape))
    kernel = math.prod(shape[2:])
    sizes = (4, 8, 16, 32)
    found = [(1, 1), (1, columns), (rows, 1), (1, kernel), (rows, kernel)]
    found += [b for n in sizes for b in ((n, 1), (1, n), (n, n), (n, kernel))]
    whole = [(h, w) for h, w in dict.fromkeys(found) if rows % h == 0 and columns % w == 0 and h * w < rows * columns]
    return [(1, 1), *(b for b in whole if b != (1, 1))]
