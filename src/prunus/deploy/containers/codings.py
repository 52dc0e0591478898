"""Codings of a mask of blocks: how many bytes each takes, what it writes, and how it is read back.

`masks` are pieces of the mask, rows of blocks in order. What is read comes from files: every number is checked before
it is used as a place, and no more is allocated than the mask, a byte for each block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from prunus.deploy.containers.bits import BitSink, Bools, Bytes, Numbers, bits_of, fields_of, ones_of
from prunus.deploy.containers.spec import LARGEST_GROUP, Spec

_READ = 1 << 17  # bytes of a stream of bits that are spread out at a time
Masks = Iterable[Bools]


class Broken(ValueError):
    """Streams that no container of this description has."""


class Code(ABC):
    """One coding: what it writes beside the values."""

    @abstractmethod
    def size(self, spec: Spec, masks: Masks) -> dict[str, int]:
        """Bytes of each stream, without fill."""

    @abstractmethod
    def write(self, spec: Spec, masks: Masks) -> dict[str, bytes]:
        """The streams."""

    @abstractmethod
    def read(self, spec: Spec, streams: Mapping[str, Bytes]) -> Bools:
        """The mask, `[rows of blocks, columns of blocks]`, with `spec.kept` True in it. Errors: `Broken`."""

    def filled(self, spec: Spec, mask: Bools) -> Bools:
        """The blocks of a piece whose values are stored."""
        return mask


class Bitmask(Code):
    """A bit for every block."""

    def size(self, spec: Spec, masks: Masks) -> dict[str, int]:
        return {"bitmask": -(-spec.blocks // 8)}

    def write(self, spec: Spec, masks: Masks) -> dict[str, bytes]:
        sink = BitSink()
        for mask in masks:
            sink.add(mask)
        return {"bitmask": sink.done()}

    def read(self, spec: Spec, streams: Mapping[str, Bytes]) -> Bools:
        stream = _whole(streams["bitmask"], -(-spec.blocks // 8))
        mask = bits_of(stream, 0, spec.blocks)
        if int(np.count_nonzero(mask)) != spec.kept:
            raise Broken(f"the bitmask marks {int(np.count_nonzero(mask))} blocks, and {spec.kept} are stored")
        return mask.reshape(spec.grid)


class Gaps(Code):
    """Golomb-Rice: the zeros before each block that is kept, their last k bits as they are, the rest counted in zeros
    that a one ends. All remainders come first, then, at a byte, all counts. For independent
    places it is within some percent of the entropy at any density below a half.
    """

    def size(self, spec: Spec, masks: Masks) -> dict[str, int]:
        return {"gaps": self.sizes(masks, spec.parameter)[0]}

    def sizes(self, masks: Masks, shifts: Sequence[int]) -> list[int]:
        """Bytes of the stream for remainders of so many bits, in one pass over the masks."""
        totals, kept = [0] * len(shifts), 0
        for gaps in _gaps(masks):
            kept += len(gaps)
            totals = [t + int((gaps >> k).sum()) for t, k in zip(totals, shifts, strict=True)]
        return [-(-kept * k // 8) + -(-(t + kept) // 8) for t, k in zip(totals, shifts, strict=True)]

    def write(self, spec: Spec, masks: Masks) -> dict[str, bytes]:
        (k,) = spec.parameter
        low, high = BitSink(), BitSink()
        for gaps in _gaps(masks):
            low.fields(gaps & ((1 << k) - 1), k)
            ends = np.cumsum((gaps >> k) + 1)
            unary = np.zeros(int(ends[-1]), np.bool_)
            unary[ends - 1] = True
            high.add(unary)
        return {"gaps": low.done() + high.done()}

    def read(self, spec: Spec, streams: Mapping[str, Bytes]) -> Bools:
        (k,), stream = spec.parameter, streams["gaps"]
        first = -(-spec.kept * k // 8) * 8
        if first + spec.kept > 8 * len(stream):
            raise Broken(f"{len(stream)} bytes hold no {spec.kept} gaps")
        mask = np.zeros(spec.blocks, np.bool_)
        done, place, before = 0, -1, -1
        for ones in ones_of(stream, first, _READ):
            if done + len(ones) > spec.kept:
                raise Broken(f"there are more gaps than the {spec.kept} blocks that are stored")
            if not len(ones):
                continue
            counts = np.diff(ones, prepend=before) - 1
            if int(counts.max()) > spec.blocks >> k:
                raise Broken("a gap leads out of the tensor")
            places = np.cumsum((counts << k) + fields_of(stream, k * done, len(ones), k) + 1) + place
            done, place, before = done + len(ones), int(places[-1]), int(ones[-1])
            if place >= spec.blocks:
                raise Broken("a gap leads out of the tensor")
            mask[places] = True
        if done != spec.kept:
            raise Broken(f"there are {done} gaps, and {spec.kept} blocks are stored")
        return mask.reshape(spec.grid)


class Csr(Code):
    """Where each row of blocks starts among the stored ones (32 bits), and the columns (8, 16 or 32 bits)."""

    def size(self, spec: Spec, masks: Masks) -> dict[str, int]:
        return {"rows": 4 * (spec.grid[0] + 1), "columns": spec.column_bytes * spec.kept}

    def write(self, spec: Spec, masks: Masks) -> dict[str, bytes]:
        counts, columns, kind = [np.zeros(1, np.int64)], bytearray(), f"<u{spec.column_bytes}"
        for mask in masks:
            counts.append(np.count_nonzero(mask, axis=1))
            columns += np.nonzero(mask)[1].astype(kind).tobytes()
        return {"rows": np.cumsum(np.concatenate(counts)).astype("<u4").tobytes(), "columns": bytes(columns)}

    def read(self, spec: Spec, streams: Mapping[str, Bytes]) -> Bools:
        rows, columns = spec.grid
        starts = _whole(streams["rows"], 4 * (rows + 1)).view("<u4").astype(np.int64)
        found = _whole(streams["columns"], spec.column_bytes * spec.kept).view(f"<u{spec.column_bytes}")
        counts = np.diff(starts)
        if starts[0] != 0 or starts[-1] != spec.kept or (len(counts) and int(counts.min()) < 0):
            raise Broken(f"the starts of rows do not lead from 0 to {spec.kept}")
        if len(found) and int(found.max()) >= columns:
            raise Broken(f"a column lies beyond the {columns} that there are")
        mask = np.zeros((rows, columns), np.bool_)
        mask[np.repeat(np.arange(rows), counts), found] = True
        if int(np.count_nonzero(mask)) != spec.kept:
            raise Broken("a column is named twice in a row")
        return mask


class NofM(Code):
    """n of every m neighbours along a row: the number of the choice among all C(m, n). A group in which fewer hold
    anything is filled up with its first zeros.
    """

    def size(self, spec: Spec, masks: Masks) -> dict[str, int]:
        return {"choices": -(-(spec.blocks // spec.parameter[1] * spec.rank_bits) // 8)}

    def filled(self, spec: Spec, mask: Bools) -> Bools:
        n, m = spec.parameter
        groups = mask.reshape(-1, m)
        need = n - np.count_nonzero(groups, axis=1)
        if not need.any():
            return mask
        filled: Bools = groups | (~groups & (np.cumsum(~groups, axis=1) <= need[:, None]))
        return filled.reshape(mask.shape)

    def write(self, spec: Spec, masks: Masks) -> dict[str, bytes]:
        n, m = spec.parameter
        table, sink = _choices(), BitSink()
        for mask in masks:
            groups = self.filled(spec, mask).reshape(-1, m)
            places = np.nonzero(groups)[1].reshape(-1, n)
            ranks = np.zeros(len(places), np.int64)
            for i in range(n):
                ranks += table[i + 1, places[:, i]]
            sink.fields(ranks, spec.rank_bits)
        return {"choices": sink.done()}

    def read(self, spec: Spec, streams: Mapping[str, Bytes]) -> Bools:
        n, m = spec.parameter
        groups, table = spec.blocks // m, _choices()
        stream = _whole(streams["choices"], -(-(groups * spec.rank_bits) // 8))
        mask = np.zeros((groups, m), np.bool_)
        step = 1 << 18
        for start in range(0, groups, step):
            count = min(step, groups - start)
            ranks = fields_of(stream, start * spec.rank_bits, count, spec.rank_bits)
            if int(ranks.max()) >= math.comb(m, n):
                raise Broken(f"a choice of {n} out of {m} has a number that none has")
            for i in range(n, 0, -1):
                places = np.searchsorted(table[i, : m + 1], ranks, side="right") - 1
                ranks = ranks - table[i, places]
                mask[start + np.arange(count), places] = True
        return mask.reshape(spec.grid)


CODES: dict[str, Code] = {"bitmask": Bitmask(), "gaps": Gaps(), "csr": Csr(), "n_of_m": NofM()}


def _gaps(masks: Masks) -> Iterator[Numbers]:
    """Zeros between what is kept, piece by piece."""
    last = -1
    for mask in masks:
        places = np.flatnonzero(mask)
        if len(places):
            yield np.diff(places, prepend=last) - 1
            last = int(places[-1])
        last -= mask.size


def _whole(stream: Bytes, size: int) -> Bytes:
    """The stream without its fill, or an error."""
    if len(stream) < size:
        raise Broken(f"a stream of {len(stream)} bytes should have {size}")
    return stream[:size]


def _choices() -> Numbers:
    """C(p, i) at [i, p]."""
    table = [[math.comb(p, i) for p in range(LARGEST_GROUP + 1)] for i in range(LARGEST_GROUP + 1)]
    return np.array(table, np.int64)
