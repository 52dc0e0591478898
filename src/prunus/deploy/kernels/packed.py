"""Weights in the forms that the kernels read."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunus.core.errors import DataError, SpecError
from prunus.deploy.kernels.library import Matrix, loaded

Form = str
"""Which zeros are left out, and how the rest lies in memory:

- `"csr"`: single weights, 96 columns at a time (192 of sparse weights), a byte per column index; for batches.
- `"rows"`: single weights, whole rows (up to 32,704 columns at a time), two bytes per index; for batch 1. Eight rows of
  64 with about as many weights lie side by side, the others filled up to the fullest of the eight.
- `"bitmask"`: single weights, a bit per place of the weight, 128 columns at a time; for half to three quarters zeros.
- `"bitrows"`: the same by whole rows; for batch 1.
- `"2:4"`, `"4:8"`, any `"n:m"`: at most n weights other than zero in m; held as a bitmask, which costs 2:4 and 4:8 no
  more than indices would.
- `"4x1"`, `"8x1"`, `"16x1"`: so many consecutive output channels share their columns; 256, 512 or 1024 columns at a
  time.
"""

Activation = Literal["none", "relu", "gelu"]
ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "gelu": 2}

ROWS = 64  # of a row block, as native/matrix.hpp has it
ABREAST = 8  # rows side by side, as native/matrix.hpp has it
SLACK = 16  # values that may be read beyond the last
LAYOUTS: dict[str, tuple[int, int, bool]] = {
    # form: layout and block as native/matrix.hpp has them, whether tiles are whole rows
    "csr": (0, 1, False),
    "rows": (3, 1, True),
    "bitmask": (1, 1, False),
    "bitrows": (1, 1, True),
    "4x1": (2, 4, False),
    "8x1": (2, 8, False),
    "16x1": (2, 16, False),
}
DTYPES = (torch.float32, torch.bfloat16)
_WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
TILES = {0: (96, 192), 1: (128,), 2: (256, 512, 1024)}
"""Columns of a tile, by layout. A panel of the smallest stays in a first cache of 32 KB. Sparser weights have wider
tiles: a row of a tile is to have enough values for what its beginning and end take."""
_ENOUGH = {0: 12, 1: 0, 2: 48, 3: 0}  # values, or blocks of them, of a row of a tile
_BYTE = 256  # tiles from here on have indices and counts of two bytes


def layout_of(form: Form) -> tuple[int, int, bool]:
    """Layout, rows that share columns and whether tiles are whole rows. Errors: `SpecError` for an unknown form."""
    if form in LAYOUTS:
        return LAYOUTS[form]
    if _pattern(form) is not None:
        return LAYOUTS["bitmask"]
    raise SpecError(f"unknown form {form!r}: known are {', '.join(LAYOUTS)} and patterns such as 2:4")


def _pattern(form: Form) -> tuple[int, int] | None:
    """n and m of "n:m"."""
    found = re.fullmatch(r"([1-9]\d{0,2}):([1-9]\d{0,2})", form)
    if found is None or int(found[1]) > int(found[2]):
        return None
    return int(found[1]), int(found[2])


def _tiles(form: Form, cols: int) -> list[int]:
    """Columns that a tile can have, the least first."""
    least = max(64, -(-cols // 64) * 64)
    layout, _, whole = layout_of(form)
    return sorted({min(least, tile) for tile in ((511 * 64,) if whole else TILES[layout])})


def _tile(form: Form, rows: int, cols: int, slots: int) -> int:
    """Columns of a tile, of which a weight has so many; the widest that it can be. 0: none fits."""
    blocks = -(-rows // ROWS)
    return next((t for t in reversed(_tiles(form, cols)) if blocks * -(-cols // t) == slots), 0)


def _tile_for(form: Form, cols: int, density: float) -> int:
    """Columns of a tile for a weight of which such a share is kept."""
    tiles, layout = _tiles(form, cols), layout_of(form)[0]
    return next((t for t in tiles if t * density >= _ENOUGH[layout]), tiles[-1])


def _kind(layout: int, tile: int) -> torch.dtype:
    """The type of indices and counts."""
    return torch.uint8 if layout == 1 or tile < _BYTE else torch.int16


@dataclass(frozen=True)
class Packed:
    """A weight without its zeros, as plain tensors.

    Attributes:
        values: what is left, float32 or bfloat16, and 16 zeros behind it.
        index: columns within tiles (uint8; int16 in wide tiles), or the bits of a bitmask (uint8).
        counts: entries of each row or block of rows in each tile; empty for a bitmask; for `rows`, 64 counts in the
            order in which the rows lie, then these rows.
        starts: int64, where each tile begins in `values`, in entries; the last number is their count.
        shape: of the weight: [out, in] or [out, in, height, width].
        form: see `Form`.
    """

    values: Tensor
    index: Tensor
    counts: Tensor
    starts: Tensor
    shape: tuple[int, ...]
    form: Form

    @property
    def rows(self) -> int:
        """Output channels."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Weights of an output channel."""
        return _columns(self.shape)

    @property
    def tile(self) -> int:
        """Columns of a tile."""
        return _tile(self.form, self.rows, self.cols, self.starts.numel() - 1)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the operators take: values, index, counts and starts."""
        return self.values, self.index, self.counts, self.starts

    @property
    def bytes(self) -> int:
        """What the tensors take in memory."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def dense(self) -> Tensor:
        """The weight, with every value and every zero where it was. Cost: some passes over it."""
        layout, block, _ = layout_of(self.form)
        tile, blocks = self.tile, -(-self.rows // ROWS)
        tiles = -(-self.cols // tile)
        words = self.values.view(_WORDS[self.values.dtype])  # keeps what arithmetic would not
        if layout == 1:
            bits = (self.index.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
            flat = bits.flatten().nonzero().flatten()
        elif layout == 3:
            place, there = _places(self.counts, tile)
            flat = (place + self.index.long().view(-1, ABREAST))[there]
            words = torch.cat([words[: there.numel()][there.flatten()], words.new_zeros(SLACK)])
        else:
            slots = torch.arange(self.counts.numel()).repeat_interleave(self.counts.flatten().long())
            flat = slots * tile + self.index.long()
        out = torch.zeros(blocks * tiles * (ROWS // block) * tile, block, dtype=words.dtype)
        out[flat] = words[: words.numel() - SLACK].view(-1, block)
        grid = out.view(blocks, tiles, ROWS // block, tile, block).permute(0, 2, 4, 1, 3)
        weight = grid.reshape(blocks * ROWS, tiles * tile)[: self.rows, : self.cols].contiguous()
        return weight.view(self.values.dtype).view(self.shape)

    def check(self) -> None:
        """Refuse tensors that do not fit together, as those of a damaged file might not.

        Cost: one pass over the indices.
        Errors: `DataError`.
        """
        problem = problem_of(*self.tensors, self.rows, self.cols, self.form)
        if not problem and loaded().prunus_check(ctypes.byref(matrix(*self.tensors, self.rows, self.cols, self.form))):
            problem = "its indices, counts and starts contradict each other"
        if problem:
            raise DataError(f"this is no packed weight of shape {list(self.shape)} and form {self.form}: {problem}")


def _columns(shape: Sequence[int]) -> int:
    cols = 1
    for size in shape[1:]:
        cols *= size
    return cols


def problem_of(values: Tensor, index: Tensor, counts: Tensor, starts: Tensor, rows: int, cols: int, form: Form) -> str:
    """Why these tensors cannot be given to the kernels; empty if they can. Looks at sizes, not at each index."""
    layout, block, _ = layout_of(form)
    slots = starts.numel() - 1
    tile = _tile(form, rows, cols, slots)
    kind = _kind(layout, tile)
    if values.dtype not in DTYPES or index.dtype != kind or counts.dtype != kind or starts.dtype != torch.int64:
        return f"its types are {values.dtype}, {index.dtype}, {counts.dtype}, {starts.dtype}"
    if any(t.device.type != "cpu" or not t.is_contiguous() for t in (values, index, counts, starts)):
        return "a tensor is not on the CPU, or not contiguous"
    if not tile:
        return f"starts has {starts.numel()} entries, which fits no tiles"
    entries = int(starts[-1])
    if values.numel() != entries * block + SLACK or entries < 0:
        return f"{values.numel()} values for {entries} entries"
    if index.numel() != (slots * ROWS * (tile // 8) if layout == 1 else entries):
        return f"{index.numel()} indices for {entries} entries"
    if counts.numel() != {1: 0, 3: 2 * slots * ROWS}.get(layout, slots * ROWS // block):
        return f"{counts.numel()} counts"
    return ""


def matrix(values: Tensor, index: Tensor, counts: Tensor, starts: Tensor, rows: int, cols: int, form: Form) -> Matrix:
    """What the library is told about a weight; the tensors must outlive it."""
    layout, block, _ = layout_of(form)
    pointers = (t.data_ptr() for t in (values, index, counts, starts))
    tile = _tile(form, rows, cols, starts.numel() - 1)
    wide = _kind(layout, tile) == torch.int16
    return Matrix(*pointers, rows, cols, tile, layout, block, wide, values.dtype == torch.bfloat16)


def _flat(weight: Tensor) -> Tensor:
    """A weight as [out, in]."""
    if weight.ndim not in (2, 4):
        raise SpecError(f"weights have two or four axes, and this one has the shape {list(weight.shape)}")
    if weight.dtype not in DTYPES:
        raise SpecError(f"the kernels take float32 and bfloat16 weights, not {weight.dtype}")
    if weight.device.type != "cpu":
        raise SpecError(f"the kernels run on the CPU, and this weight is on {weight.device}")
    return weight.detach().reshape(weight.shape[0], _columns(weight.shape))


def pack(weight: Tensor, form: Form = "csr", dtype: torch.dtype | None = None) -> Packed:
    """Put a weight into a form that the kernels read.

    Args:
        weight: [out, in] of a linear map or [out, in, height, width] of a convolution, float32 or bfloat16, on the CPU.
        form: see `Form`. Whatever is not in the pattern's blocks is kept: zeros inside them are stored.
        dtype: of the values that are kept; left out, the weight's own. `torch.bfloat16` rounds a float32 weight.

    Returns: the packed weight; `dense()` gives `weight` back, if it was not rounded: every value bit for bit, and
        zeros that are minus zero, as a mask leaves them behind, as plain ones.
    Cost: some passes over the weight, memory of a few times its size meanwhile.
    Errors: `SpecError` for other types and shapes, and for an n:m that the weight does not have.
    """
    layout, block, _ = layout_of(form)
    kept = weight.dtype if dtype is None else dtype
    if kept not in DTYPES:
        raise SpecError(f"values are kept as float32 or bfloat16, not {kept}")
    flat_weight = _flat(weight)
    if kept != weight.dtype:
        flat_weight = flat_weight.to(kept)
    if (pattern := _pattern(form)) is not None and _fill_of_pattern(flat_weight != 0, *pattern) is None:
        raise SpecError(
            f"this weight of shape {list(weight.shape)} is not {form}: some {pattern[1]} neighbours have more"
        )
    rows, cols = flat_weight.shape
    tile = _tile_for(form, cols, int(flat_weight.count_nonzero()) / max(flat_weight.numel(), 1))
    blocks, tiles = -(-rows // ROWS), -(-cols // tile)
    padded = torch.nn.functional.pad(flat_weight, (0, tiles * tile - cols, 0, blocks * ROWS - rows))
    grid = padded.view(blocks, ROWS // block, block, tiles, tile).permute(0, 3, 1, 4, 2).contiguous()
    there = (grid != 0).any(-1)  # [block, tile, rows or blocks of them, column]
    if layout == 3:
        return Packed(*_abreast(grid.view(-1, ROWS, tile), there.view(-1, ROWS, tile)), tuple(weight.shape), form)
    flat = there.flatten().nonzero().flatten()
    values = torch.cat([grid.view(-1, block)[flat].flatten(), flat_weight.new_zeros(SLACK)])
    per_tile = there.flatten(2).sum(-1).flatten()
    starts = torch.cat([per_tile.new_zeros(1), per_tile.cumsum(0)])
    kind = _kind(layout, tile)
    if layout == 1:
        weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
        index = (there.view(-1, 8).to(torch.uint8) * weights).sum(-1, dtype=torch.uint8)
        counts = torch.empty(0, dtype=kind)
    else:
        index = (flat % tile).to(kind)
        counts = there.sum(-1).flatten().to(kind)
    return Packed(values, index, counts, starts, tuple(weight.shape), form)


def _places(counts: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Of entries side by side, [step, 8]: where each row begins in [slot, row, column], and whether it is there."""
    entries, rows = counts.long().view(-1, 2, ROWS).unbind(1)
    first = rows + torch.arange(len(rows)).unsqueeze(1) * ROWS
    entries = entries.reshape(-1, ABREAST)
    steps = entries[:, 0]
    step = torch.arange(int(steps.sum())) - (steps.cumsum(0) - steps).repeat_interleave(steps)
    there = step.unsqueeze(1) < entries.repeat_interleave(steps, 0)
    return first.view(-1, ABREAST).repeat_interleave(steps, 0) * tile, there


def _abreast(grid: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, index, counts and starts of `rows`, of a weight [slot, row, column] and where it is other than zero."""
    kind = _kind(3, grid.shape[-1])
    entries, order = there.sum(-1).sort(dim=1, descending=True, stable=True)
    steps = entries[:, ::ABREAST]
    first = steps.flatten().cumsum(0) * ABREAST
    starts = torch.cat([first.new_zeros(1), first[ROWS // ABREAST - 1 :: ROWS // ABREAST]])
    first = (first - steps.flatten() * ABREAST).view_as(steps)
    values, index = grid.new_zeros(int(starts[-1]) + SLACK), torch.empty(int(starts[-1]), dtype=kind)
    for slot, rows in enumerate(order):  # one after the other: places of all of them would be larger than the weight
        kept = there[slot, rows]
        lane, column = kept.nonzero(as_tuple=True)
        nth = torch.arange(len(lane)) - (entries[slot].cumsum(0) - entries[slot])[lane]
        at = first[slot][lane // ABREAST] + nth * ABREAST + lane % ABREAST
        missing = (~kept).to(torch.uint8).argmax(-1).to(kind).view(-1, ABREAST)  # the first column that each row lacks
        index[starts[slot] : starts[slot + 1]] = missing.repeat_interleave(steps[slot], 0).flatten()
        index[at], values[at] = column.to(kind), grid[slot, rows[lane], column]
    return values, index, torch.stack([entries, order], 1).to(kind).flatten(), starts


def _fill_of_pattern(there: Tensor, n: int, m: int) -> float | None:
    """The share of an n:m pattern's places that are used; None where some m neighbours have more than n."""
    rows, cols = there.shape
    if cols % m or not there.numel():
        return None
    counts = there.view(rows, cols // m, m).sum(-1)
    return float(counts.sum()) / (counts.numel() * n) if int(counts.max()) <= n else None


def forms_of(weight: Tensor, least: float = 0.75, patterns: Sequence[str] = ("2:4", "4:8")) -> dict[Form, float]:
    """The forms that represent a weight without loss, and how full each is.

    Args:
        weight: as `pack` takes it.
        least: share of the values of a block form that have to be other than zero for it to be named.
        patterns: the n:m that are tried.

    Returns: form -> values other than zero over values that it stores (1 for single weights); for n:m, over the places
        of the pattern.
    Cost: some passes over the weight.
    """
    there = _flat(weight) != 0
    rows, _ = there.shape
    found = {"csr": 1.0, "rows": 1.0, "bitmask": 1.0, "bitrows": 1.0}
    for form in patterns:
        pattern = _pattern(form)
        if pattern is None:
            raise SpecError(f"{form!r} is no pattern such as 2:4")
        fill = _fill_of_pattern(there, *pattern)
        if fill is not None and fill >= least:
            found[form] = fill
    total = int(there.sum())
    for form, (_, block, _wide) in LAYOUTS.items():
        if block == 1:
            continue
        padded = torch.nn.functional.pad(there, (0, 0, 0, -rows % block))
        stored = int(padded.view(-1, block, there.shape[1]).any(1).sum()) * block
        if stored and total / stored >= least:
            found[form] = total / stored
    return found
