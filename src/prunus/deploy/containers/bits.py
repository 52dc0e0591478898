"""Streams of bits, lowest bit of a byte first, written and read a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]


class BitSink:
    """Bits that arrive in pieces of any length, as whole bytes."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._rest: Bools = np.empty(0, np.bool_)

    def add(self, bits: Bools) -> None:
        """Append bits. Cost: a byte of memory for each while it runs."""
        bits = np.concatenate([self._rest, bits.reshape(-1)]) if self._rest.size else bits.reshape(-1)
        whole = bits.size // 8 * 8
        self._bytes += np.packbits(bits[:whole], bitorder="little").tobytes()
        self._rest = bits[whole:].copy()

    def fields(self, numbers: Numbers, width: int) -> None:
        """Append numbers of `width` bits each, lowest bit first."""
        bits = np.empty((len(numbers), width), np.bool_)
        for i in range(width):
            bits[:, i] = (numbers >> i) & 1
        self.add(bits)

    def done(self) -> bytes:
        """All of it, the last byte filled with zeros."""
        return bytes(self._bytes) + np.packbits(self._rest, bitorder="little").tobytes()


def bits_of(stream: Bytes, first: int, count: int) -> Bools:
    """`count` bits of a stream from the bit `first` on; the stream must reach that far."""
    low = first // 8
    piece = stream[low : -(-(first + count) // 8)]
    return np.unpackbits(piece, bitorder="little")[first - 8 * low :][:count].view(np.bool_)


def fields_of(stream: Bytes, first: int, count: int, width: int) -> Numbers:
    """`count` numbers of `width` bits each from the bit `first` on."""
    if not width:
        return np.zeros(count, np.int64)
    bits = bits_of(stream, first, count * width).reshape(count, width)
    found = np.zeros(count, np.int64)
    for i in range(width):
        found |= bits[:, i].astype(np.int64) << i
    return found


def ones_of(stream: Bytes, first: int, piece: int) -> Iterator[Numbers]:
    """Places of the set bits from the bit `first` on, counted from there, in pieces of so many bytes read."""
    last = 8 * len(stream)
    for start in range(first, last, 8 * piece):
        bits = bits_of(stream, start, min(8 * piece, last - start))
        yield np.flatnonzero(bits) + (start - first)
