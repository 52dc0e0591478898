"""Sparse containers: bit for bit, near the entropy bound, and nothing from outside is believed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunus.core.errors import SpecError, VerificationError
from prunus.deploy.containers import CODINGS, Packed, Spec, pack, unpack
from prunus.deploy.containers.grid import DTYPES, PIECE
from tests.shapes import shapes

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SPARSE = [c for c in CODINGS if c != "dense"]


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chosen(n: int, kept: int, seed: int) -> Tensor:
    """n flags, of which so many are set."""
    flags = torch.zeros(n, dtype=torch.bool)
    flags[torch.randperm(n, generator=dice(seed))[:kept]] = True
    return flags


def log2_comb(n: int, k: int) -> float:
    """log2 of n over k; from 10,000 on as a sum of logarithms."""
    if n < 10_000:
        return math.log2(math.comb(n, k))
    places = np.arange(1, k + 1)
    return float(np.log2((n - k + places) / places).sum())


def blocks(rows: int, columns: int, sparsity: float, high: int, wide: int) -> tuple[Tensor, float]:
    """Blocks at random places, and log2 of the number of such patterns."""
    high, wide = high or rows, wide or columns
    n = rows // high * (columns // wide)
    kept = n - round(n * sparsity)
    grid = chosen(n, kept, rows).reshape(rows // high, columns // wide)
    return grid.repeat_interleave(high, 0).repeat_interleave(wide, 1), log2_comb(n, kept)


def groups(rows: int, columns: int, n: int, m: int) -> tuple[Tensor, float]:
    """n of every m along a row, and log2 of the number of such patterns."""
    order = torch.rand(rows * columns // m, m, generator=dice(n)).argsort(1)
    return (order < n).reshape(rows, columns), rows * columns // m * math.log2(math.comb(m, n))


PATTERNS: dict[str, Callable[[int, int], tuple[Tensor, float]]] = {
    **{f"{s} %": lambda r, c, s=s: blocks(r, c, s / 100, 1, 1) for s in (50, 60, 70, 80, 90, 95, 99)},
    **{f"{n}:{m}": lambda r, c, n=n, m=m: groups(r, c, n, m) for n, m in ((2, 4), (4, 8), (1, 4), (3, 16))},
    **{f"{h}x{w} {s} %": lambda r, c, h=h, w=w, s=s: blocks(r, c, s / 100, h, w)
       for h, w in ((4, 1), (8, 1), (16, 1), (1, 4), (1, 16), (4, 4), (16, 16)) for s in (50, 90)},
    **{f"{what} {s} %": lambda r, c, h=h, w=w, s=s: blocks(r, c, s / 100, h, w)
       for what, h, w in (("rows", 1, 0), ("columns", 0, 1)) for s in (30, 75)},
}  # fmt: skip


def filled(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Random values, none of them zero, where the mask says."""
    drawn = torch.randint(1, 127, mask.shape, generator=dice(7)) / (1 if dtype == torch.int8 else 16)
    return torch.where(mask, drawn.to(dtype), torch.zeros((), dtype=dtype))


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.contiguous().reshape(-1).view(torch.uint8).tolist() == b.reshape(-1).view(torch.uint8).tolist()


def back(packed: Packed) -> Tensor:
    streams = packed.streams()
    assert sum(len(s) for s in streams.values()) == packed.size
    return unpack(packed.spec, streams, packed.spec.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_bytes_are_near_the_entropy_bound(name: str, dtype: torch.dtype) -> None:
    for rows, columns in ((64, 64), (128, 576), (512, 512)):
        mask, pattern = PATTERNS[name](rows, columns)
        packed = pack(tensor := filled(mask, dtype))
        bound = (pattern + 8 * dtype.itemsize * int(mask.sum())) / 8
        assert packed.size <= 1.1 * bound, (rows, columns, packed.spec)
        # The bound that is told is that of this class of patterns or of a narrower one.
        assert packed.spec.bound() <= 1.01 * bound + 1
        assert torch.equal(back(packed), tensor)


def test_the_bound_counts_patterns() -> None:
    """Of a 2 x 4 matrix with 3 entries, one byte each: C(8, 3) = 56 patterns; 1:4 has 4 * 4 of them."""
    assert Spec((2, 4), "U8", "bitmask", kept=3).bound() == math.ceil((math.log2(56) + 24) / 8)
    assert Spec((2, 4), "U8", "n_of_m", kept=2, parameter=(1, 4)).bound() == math.ceil((4 + 16) / 8)
    assert Spec((4, 4), "F32", "gaps", (2, 2), 1, (0,)).bound() == math.ceil((2 + 128) / 8)
    assert Spec((4, 4), "F32", "dense").bound() == 64


@pytest.mark.parametrize("coding", SPARSE)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_type_comes_back_bit_for_bit(dtype: torch.dtype, coding: str) -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 256, (24, 16 * dtype.itemsize), np.uint8)
    if dtype == torch.bool:
        words &= 1
    words[generator.random(words.shape) < 0.2] = 0
    tensor = torch.from_numpy(words).view(dtype)
    bits = tensor.view(torch.uint8).reshape(24, 16, dtype.itemsize)
    bits[torch.rand(24, 16, generator=dice(0)) < 0.7] = 0
    packed = pack(tensor, only=[coding])
    assert packed.spec.coding == coding
    assert same_bits(back(packed), tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("coding", [None, *SPARSE])
def test_odd_values_are_values(dtype: torch.dtype, coding: str | None) -> None:
    tensor = torch.zeros(16, 32, dtype=dtype)
    odd = [-0.0, math.nan, math.inf, -math.inf, 5e-324, torch.finfo(dtype).tiny, torch.finfo(dtype).max]
    for i, value in enumerate(odd):
        tensor[2 * i, 4 * i] = value
    tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])[15, 31] = -2  # a NaN with a payload
    packed = pack(tensor, only=None if coding is None else [coding])
    assert packed.spec.coding != "dense" and same_bits(back(packed), tensor)


@pytest.mark.parametrize("coding", [None, *SPARSE])
def test_what_pruning_zeroed_is_zero_whatever_its_sign(coding: str | None) -> None:
    values = torch.randn(64, 64, generator=dice(1))
    keep = torch.rand(64, 64, generator=dice(2)) < 0.2
    tensor = values * keep
    tensor[keep & (values > 1)] = -0.0  # a weight that is kept may be a negative zero
    assert (tensor.view(torch.int32) == -(1 << 31)).sum() > 1000
    only = None if coding is None else [coding]
    packed = pack(tensor, keep=keep, only=only)
    assert packed.size < (0.5 if coding else 0.25) * tensor.nbytes
    assert same_bits(back(packed), torch.where(keep, tensor, torch.zeros(())))
    assert same_bits(back(pack(tensor, only=only)), tensor)  # without a mask, nobody knows that it was pruned
    alive = tensor.clone()
    alive[0, :] = 3.0  # what a mask calls pruned and is not zero stays
    assert torch.equal(back(pack(alive, keep=keep, only=only)), alive)


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (7,), (64,), (5, 3), (3, 0, 2), (1, 100), (100, 1), (8, 4, 3, 3), (33, 17, 5), (2,) * 8]
)
@pytest.mark.parametrize("coding", [None, *SPARSE])
def test_every_shape(shape: tuple[int, ...], coding: str | None) -> None:
    for sparsity in (0.0, 0.5, 0.97, 1.0):
        tensor = torch.randn(shape, generator=dice(3)) * (torch.rand(shape, generator=dice(4)) >= sparsity)
        packed = pack(tensor, only=None if coding is None else [coding, "dense"])
        assert same_bits(back(packed), tensor)
        assert packed.size <= tensor.nbytes


def test_layouts_in_memory_do_not_matter() -> None:
    base = torch.randn(40, 64, generator=dice(5)) * (torch.rand(40, 64, generator=dice(6)) < 0.3)
    conjugate, trained = base.to(torch.complex64).conj(), base.clone().requires_grad_()
    for tensor in (base.t(), base[::2, ::3], base[:, 5:], conjugate, trained):
        assert same_bits(back(pack(tensor)), tensor.detach().resolve_conj())


def test_large_tensors_are_taken_in_pieces() -> None:
    rows = PIECE // 512 + 37
    for name in ("95 %", "2:4", "columns 30 %"):
        mask, _ = PATTERNS[name](rows * 4, 512)
        tensor = filled(mask, torch.bfloat16)
        packed = pack(tensor)
        assert len(list(packed.source().pieces())) > 2 and packed.spec.coding != "dense"
        assert torch.equal(back(packed), tensor), name


@pytest.mark.parametrize("name", PATTERNS)
def test_the_smallest_is_chosen(name: str) -> None:
    """No other coding of any block that the choice tries is smaller."""
    tensor = filled(PATTERNS[name](64, 192)[0], torch.float16)
    best = pack(tensor)
    for coding in SPARSE:
        assert best.size <= pack(tensor, only=[coding]).size + 8, coding


def test_regular_patterns_take_row_starts_and_columns() -> None:
    """One entry in a row of 200, always at the same place: gaps of 199 take nine bits, a column eight."""
    tensor = torch.zeros(400, 199)
    tensor[torch.arange(400), torch.arange(400) * 61 % 199] = 1.0
    assert same_bits(back(pack(tensor, only=["csr"])), tensor)
    assert pack(tensor, only=["csr"]).sizes == {"rows": 4 * 401, "columns": 400}
    for columns, wide in ((256, 1), (257, 2), (65537, 4)):
        wider = torch.zeros(2, columns)
        wider[1, -1] = 1.0
        assert pack(wider, only=["csr"]).sizes["columns"] in (wide, 4)
        assert same_bits(back(pack(wider, only=["csr"])), wider)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 70), st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from([None, *SPARSE])
)
def test_any_matrix(rows: int, columns: int, seed: int, density: float, coding: str | None) -> None:
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 1 << 16, (rows, columns), np.uint16) * (generator.random((rows, columns)) < density)
    tensor = torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    packed = pack(tensor, only=None if coding is None else [coding, "dense"])
    assert same_bits(back(packed), tensor)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (1 << 31, 1 << 31)},
        {"shape": (1 << 62,)},
        {"shape": (-8, -8)},
        {"dtype": "F128"},
        {"block": (0, 1)},
        {"block": (3, 1)},
        {"block": (-1, -1)},
        {"kept": -1},
        {"kept": 65 * 64},
        {"coding": "gaps"},
        {"coding": "gaps", "parameter": (64,)},
        {"coding": "gaps", "parameter": (-1,)},
        {"coding": "n_of_m", "parameter": (2, 4), "kept": 1},
        {"coding": "n_of_m", "parameter": (4, 4), "kept": 4096},
        {"coding": "n_of_m", "parameter": (1, 64), "kept": 64},
        {"coding": "bitmask", "parameter": (1,)},
    ],
    ids=str,
)
def test_descriptions_of_nothing_are_refused(change: dict[str, object]) -> None:
    plain: dict[str, object] = {"shape": (64, 64), "dtype": "F32", "coding": "bitmask", "kept": 5}
    Spec(**plain)
    with pytest.raises(ValueError, match=r"."):
        Spec(**plain | change)


@pytest.mark.parametrize("coding", SPARSE)
def test_streams_that_say_something_else_are_refused(coding: str) -> None:
    """Every bit of the places, flipped: an error, or another matrix of the same size. Never a crash."""
    tensor = filled(PATTERNS["1:4"](16, 16)[0], torch.float32)
    packed = pack(tensor, only=[coding])
    streams = packed.streams()
    refused = 0
    for name in packed.sizes:
        for i in range(8 * len(streams[name])):
            damaged = {n: s.copy() for n, s in streams.items()}
            damaged[name][i // 8] ^= 1 << i % 8
            try:
                assert unpack(packed.spec, damaged, (16, 16)).shape == (16, 16)
            except VerificationError:
                refused += 1
        for short in (0, 1, len(streams[name]) // 2):
            with pytest.raises(VerificationError):
                unpack(packed.spec, streams | {name: streams[name][:short]}, (16, 16))
    assert refused or coding == "n_of_m"  # two bits number the four choices of 1:4: each is one
    with pytest.raises(VerificationError, match="bytes of values"):
        unpack(packed.spec, streams | {"values": streams["values"][:-4]}, (16, 16))


def test_random_streams_are_refused_or_read() -> None:
    generator = np.random.default_rng(0)
    for coding, _ in itertools.product(SPARSE, range(150)):
        kept = 64 if coding == "n_of_m" else int(generator.integers(0, 257))
        parameter = {"gaps": (int(generator.integers(0, 41)),), "n_of_m": (1, 4)}.get(coding, ())
        spec = Spec((16, 16), "F32", coding, (1, 1), kept, parameter)
        streams = {s: generator.integers(0, 256, int(generator.integers(0, 200)), np.uint8) for s in spec.streams}
        streams["values"] = generator.integers(0, 256, 4 * kept, np.uint8)
        with suppress(VerificationError):
            assert unpack(spec, streams, (16, 16)).shape == (16, 16)


def test_shapes_are_compared_before_anything_is_allocated() -> None:
    """A container of nothing that claims 2^60 bytes."""
    spec = Spec((1 << 29, 1 << 29), "F32", "gaps", parameter=(0,))
    empty = {"gaps": np.zeros(0, np.uint8), "values": np.zeros(0, np.uint8)}
    with pytest.raises(VerificationError, match="should be"):
        unpack(spec, empty, (64, 64))


def test_wrong_arguments_are_said() -> None:
    with shapes(False), pytest.raises(SpecError, match="zstd"):
        pack(torch.zeros(4, 4), only=["zstd"])  # type: ignore[list-item]
    with pytest.raises(SpecError, match="complex128"):
        pack(torch.zeros(4, 4, dtype=torch.complex128))
