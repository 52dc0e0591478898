"""Which container of a tensor is the smallest: counted, not guessed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prunus.deploy.containers.bits import Bools
from prunus.deploy.containers.codings import CODES, Gaps
from prunus.deploy.containers.grid import Block, Matrix, block_sizes, reduced
from prunus.deploy.containers.spec import CODINGS, SHIFTS, Coding, Spec, log2_choices

ENTRY = 70
"""About what a tensor costs in the header of a file, beside its name: what a container of few values has to make up."""
_GROUPS = (2, 4, 8, 16, 32)


@dataclass
class _Census:
    """What one pass over a matrix counts: blocks that hold anything for every size of block, and the fullest group."""

    kept: dict[Block, int]
    fullest: dict[int, int]
    seen: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))


def choose(matrix: Matrix, *, only: Sequence[Coding] | None = None, name: str = "") -> tuple[Spec, dict[str, int]]:
    """The smallest container of a matrix, and the bytes of its streams without the values.

    Args:
        matrix: the tensor.
        only: the codings to choose from; all.
        name: the tensor's, which a file writes once for every stream.

    Cost: one pass over the tensor for the counts, in pieces, and one for every size of block whose values alone are
    not larger than the best container so far; two, where gaps may be the smallest.
    """
    dense = Spec(matrix.shape, matrix.dtype, "dense")
    full = dense.count * dense.item
    codings = [c for c in CODINGS if c in CODES and (only is None or c in only)]
    if not codings or not dense.count or not matrix.shape:
        return dense, {}
    census = _count(matrix, block_sizes(matrix.shape), full)
    entry = ENTRY + len(name)
    best: tuple[Spec, dict[str, int]] = (dense, {})
    least = full if only is None or "dense" in only else 1 << 62
    specs = [Spec(matrix.shape, matrix.dtype, "bitmask", block, kept) for block, kept in census.kept.items()]
    for spec in sorted(specs, key=lambda s: (s.values, s.blocks)):
        for made in _codes(spec, codings, census):
            least_of = made.values * made.item + _least(made)
            if least_of + entry >= least:
                continue
            for tried, sizes in _sizes(made, matrix):
                size = sum(sizes.values()) + tried.values * tried.item + entry * len(sizes)
                if size < least:
                    best, least = (tried, sizes), size
    return best


def _count(matrix: Matrix, blocks: Sequence[Block], full: int) -> _Census:
    """The counts; a size of block is given up once it stores more needless zeros than any mask has bytes."""
    found = _Census(dict.fromkeys(blocks, 0), {m: 0 for m in _GROUPS if matrix.columns % m == 0})
    columns = {b: np.zeros(matrix.columns // b[1], np.bool_) for b in blocks if b[0] == matrix.rows > 1}
    item, mask = matrix.bits.itemsize, -(-matrix.bits.size // 8)
    for start, stop in matrix.pieces():
        cells = matrix.nonzero(start, stop)
        found.kept[1, 1] += int(np.count_nonzero(cells))
        for block in list(found.kept):
            if block == (1, 1):
                continue
            if block in columns:
                columns[block] |= reduced(cells, (stop - start, block[1]))[0]
                continue
            found.kept[block] += int(np.count_nonzero(reduced(cells, block)))
            if (found.kept[block] * math.prod(block) - found.kept[1, 1]) * item > mask + 8:
                del found.kept[block]
        for m in list(found.fullest):
            groups = np.add.reduce(cells.reshape(-1, m), axis=1, dtype=np.uint8) if m > 8 else _sums(cells, m)
            found.fullest[m] = max(found.fullest[m], int(groups.max()))
            if found.fullest[m] == m:
                del found.fullest[m]
    found.kept |= {b: int(np.count_nonzero(c)) for b, c in columns.items()}
    return found


def _sums(cells: Bools, m: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """How many of every m neighbours are True."""
    groups = cells.view(np.uint8).reshape(-1, m)
    total = groups[:, 0].copy()
    for i in range(1, m):
        total += groups[:, i]
    return total


def _codes(spec: Spec, codings: Sequence[Coding], census: _Census) -> Iterator[Spec]:
    """The blocks in every coding that is defined for them; gaps with their likeliest remainders."""
    for coding in codings:
        if coding == "n_of_m":
            for m, n in census.fullest.items() if spec.block == (1, 1) else ():
                if n:
                    kept = spec.blocks // m * n
                    yield replace(spec, coding="n_of_m", kept=kept, parameter=(n, m))
        elif coding == "gaps":
            mean = spec.blocks / max(1, spec.kept) - 1
            k = max(0, math.ceil(math.log2(max(1.0, mean) * math.log(2))))
            yield replace(spec, coding="gaps", parameter=(min(k, SHIFTS - 2),))
        elif coding == "bitmask" or (coding == "csr" and spec.kept < 1 << 32):
            yield replace(spec, coding=coding)


def _least(spec: Spec) -> int:
    """Bytes that the coding cannot do without, whatever the pattern."""
    if spec.coding == "gaps":
        return spec.kept // 8
    return sum(CODES[spec.coding].size(spec, ()).values())


def _sizes(spec: Spec, matrix: Matrix) -> Iterator[tuple[Spec, dict[str, int]]]:
    code = CODES[spec.coding]
    if not isinstance(code, Gaps):
        yield spec, code.size(spec, ())
        return
    if spec.kept and log2_choices(spec.blocks, spec.kept) > spec.blocks:
        return
    k = spec.parameter[0]
    shifts = [s for s in (k - 1, k, k + 1) if 0 <= s < SHIFTS]
    masks = (units for _, _, units in matrix.units(spec.block))
    for shift, size in zip(shifts, code.sizes(masks, shifts), strict=True):
        yield replace(spec, parameter=(shift,)), {"gaps": size}
