"""What has to be known of a container, beside its streams, to read it; and the fewest bytes its pattern allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Coding = Literal["dense", "bitmask", "gaps", "csr", "n_of_m"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
ITEM_BYTES: dict[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes of an entry of every type, as safetensors names it, that a container may hold."""
STREAMS: dict[str, tuple[str, ...]] = {
    "dense": (), "bitmask": ("bitmask",), "gaps": ("gaps",), "csr": ("rows", "columns"), "n_of_m": ("choices",),
}  # fmt: skip
"""What every coding writes beside the values."""
SHIFTS = 41
"""Remainders of gaps have fewer bits than this."""
LARGEST_GROUP = 32
"""The largest m of an n:m coding: numbers of combinations fit 32 bits."""


@dataclass(frozen=True)
class Spec:
    """A container.

    Attributes:
        shape, dtype: the tensor's; the type as safetensors names it.
        coding: how it is written which blocks are there.
        block: rows and columns of a block of the matrix `[shape[0], the rest]` (`[1, all]` where there is one axis).
        kept: blocks that are stored, in `n_of_m` those included that fill a group up to n.
        parameter: of `gaps` the bits of a remainder, of `n_of_m` n and m; else nothing.

    Errors: `ValueError` where these do not fit each other. Nothing is allocated by making one.
    """

    shape: tuple[int, ...]
    dtype: str
    coding: Coding
    block: tuple[int, int] = (1, 1)
    kept: int = 0
    parameter: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(n < 0 for n in self.shape) or self.count >= 1 << 62:
            raise ValueError(f"{self.shape} is no shape of a tensor that fits any memory")
        if self.coding == "dense":
            return
        if self.dtype not in ITEM_BYTES or not self.count or not self.shape:
            raise ValueError(f"a {self.coding} container holds no tensor of {self.shape} {self.dtype}")
        (rows, columns), (high, wide) = self.matrix, self.block
        if high < 1 or wide < 1 or rows % high or columns % wide:
            raise ValueError(f"blocks of {high} x {wide} do not cover a matrix of {rows} x {columns}")
        if not 0 <= self.kept <= self.blocks:
            raise ValueError(f"{self.kept} of {self.blocks} blocks are said to be kept")
        self._check_parameter()

    def _check_parameter(self) -> None:
        given, sizes = self.parameter, {"gaps": 1, "n_of_m": 2}
        if len(given) != sizes.get(self.coding, 0):
            raise ValueError(f"the coding {self.coding} does not take {given}")
        if self.coding == "gaps" and not 0 <= given[0] < SHIFTS:
            raise ValueError(f"remainders of {given[0]} bits")
        if self.coding == "n_of_m":
            n, m = given
            if not 0 < n < m <= LARGEST_GROUP or self.grid[1] % m or self.kept != self.blocks // m * n:
                raise ValueError(f"{self.kept} of {self.grid} blocks are no {n} of every {m}")
        if self.coding == "csr" and self.kept >= 1 << 32:
            raise ValueError(f"{self.kept} blocks are more than row starts of 32 bits count")

    @property
    def count(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns that it is looked at as."""
        return matrix_of(self.shape)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        (rows, columns), (high, wide) = self.matrix, self.block
        return rows // high, columns // wide

    @property
    def blocks(self) -> int:
        """How many there are."""
        return self.grid[0] * self.grid[1]

    @property
    def item(self) -> int:
        """Bytes of an entry."""
        return ITEM_BYTES[self.dtype]

    @property
    def values(self) -> int:
        """Entries that are stored."""
        return self.count if self.coding == "dense" else self.kept * self.block[0] * self.block[1]

    @property
    def rank_bits(self) -> int:
        """Bits that number the choices of n out of m."""
        n, m = self.parameter
        return (math.comb(m, n) - 1).bit_length()

    @property
    def column_bytes(self) -> int:
        """Bytes of a column's number in a `csr` container: 1, 2 or 4."""
        return 1 if self.grid[1] <= 1 << 8 else 2 if self.grid[1] <= 1 << 16 else 4

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of its streams, the values last."""
        return (*STREAMS[self.coding], "values")

    @property
    def pattern(self) -> str:
        """The pattern in words: `dense`, `unstructured`, `2:4`, `rows`, `columns`, `8x1`."""
        (rows, columns), (high, wide) = self.matrix, self.block
        if self.coding == "dense":
            return "dense"
        if self.coding == "n_of_m":
            return "{}:{}".format(*self.parameter)
        if rows > 1 and (high, wide) == (1, columns):
            return "rows"
        if columns > 1 and (high, wide) == (rows, 1):
            return "columns"
        return "unstructured" if self.block == (1, 1) else f"{high}x{wide}"

    def bound(self) -> int:
        """The entropy bound in bytes: log2 of the number of patterns of this class with as many blocks kept, plus the
        bits of the values of these blocks, which are taken to be incompressible. Of the class of n:m patterns, of
        which every group has its own n, that is groups * log2 C(m, n); of all others log2 C(blocks, kept). Rounded up.
        """
        if self.coding == "n_of_m":
            n, m = self.parameter
            bits = self.blocks // m * math.log2(math.comb(m, n))
        else:
            bits = 0.0 if self.coding == "dense" else log2_choices(self.blocks, self.kept)
        return math.ceil((bits + 8 * self.item * self.values) / 8)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dict(vars(self))


def matrix_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns: the first axis and all others; one row where there is one axis."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def log2_choices(n: int, k: int) -> float:
    """log2 of the binomial coefficient n over k."""
    if k in (0, n):
        return 0.0
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
