"""What a sparse product must not lose: NaN and infinity, determinism, other types, other callers, a forked child."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.core.errors import DataError
from prunus.deploy import kernels
from prunus.deploy.kernels import library

pytestmark = pytest.mark.skipif(not kernels.available(), reason=kernels.reason() or "kernels")
FORMS = ("csr", "rows", "bitmask", "bitrows", "4x1", "16x1")
NAN, INF = float("nan"), float("inf")


def sparse(*shape: int, sparsity: float = 0.8, block: int = 1) -> Tensor:
    keep = (torch.rand(-(-shape[0] // block), *shape[1:]) > sparsity).repeat_interleave(block, 0)[: shape[0]]
    return torch.randn(shape) * keep


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_nan_and_infinity_reach_what_they_reach_in_a_dense_product(form: str, tokens: int) -> None:
    weight = sparse(70, 200, block=4)
    weight[:, 7] = 0.0  # a column without weights: 0 * NaN is NaN all the same
    packed = kernels.pack(weight, form)
    for place, value in ((7, NAN), (3, INF), (199, -INF), (50, NAN)):
        x = torch.randn(tokens, 200)
        x[tokens // 2, place] = value
        same(kernels.linear(x, packed), x @ weight.T)
        assert kernels.linear(x, packed)[tokens // 2].isnan().any()


@pytest.mark.parametrize("form", FORMS)
def test_weights_may_be_nan_or_infinite(form: str) -> None:
    weight = sparse(20, 90)
    weight[3, 5], weight[4, 6], weight[5, 7] = NAN, INF, -INF
    packed = kernels.pack(weight, form)
    assert torch.equal(packed.dense().isnan(), weight.isnan())
    x = torch.randn(9, 90)
    same(kernels.linear(x, packed), x @ weight.T)
    same(kernels.linear(x[:1], packed), x[:1] @ weight.T)


@pytest.mark.parametrize("stride", [1, 2])
def test_nan_in_an_image_reaches_what_a_dense_convolution_says(stride: int) -> None:
    weight = sparse(9, 4, 3, 3)
    x = torch.randn(2, 4, 20, 20)
    x[0, 2, 5, 6], x[1, 0, 0, 0] = NAN, INF
    found = kernels.conv2d(x, kernels.pack(weight), stride=stride, padding=1)
    same(found, F.conv2d(x, weight, stride=stride, padding=1))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_activations_pass_on_what_torchs_pass_on(value: float) -> None:
    x = torch.tensor([[value], [1.0], [-9.0], [-100.0], [0.0]])
    packed = kernels.pack(torch.ones(1, 1))
    same(kernels.linear(x, packed, activation="relu"), F.relu(x))
    same(kernels.linear(x, packed, activation="gelu"), F.gelu(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 9, 200])
def test_results_do_not_depend_on_the_threads(form: str, tokens: int) -> None:
    packed, x = kernels.pack(sparse(300, 500), form), torch.randn(tokens, 500)
    one = kernels.linear(x, packed, threads=1)
    assert all(torch.equal(one, kernels.linear(x, packed, threads=n)) for n in (2, 3, 8))


def test_many_callers_at_once() -> None:
    packed = [kernels.pack(sparse(200, 300), form) for form in FORMS]
    kernel = kernels.pack(sparse(40, 8, 3, 3), "csr")
    x, image = torch.randn(40, 300), torch.randn(2, 8, 20, 20)
    expected = [kernels.linear(x, p, threads=1) for p in packed]
    convolved = kernels.conv2d(image, kernel, padding=1, threads=1)

    def work(i: int) -> bool:
        which = i % len(packed)
        right = torch.equal(kernels.linear(x, packed[which], threads=2), expected[which])
        return right and torch.equal(kernels.conv2d(image, kernel, padding=1, threads=3), convolved)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(120)))


def _in_child(packed: Any, x: Tensor, expected: Tensor, answer: Any) -> None:
    answer.put(torch.equal(kernels.linear(x, packed, threads=2), expected))


def test_a_forked_child_has_threads_of_its_own() -> None:
    packed, x = kernels.pack(sparse(300, 200)), torch.randn(100, 200)
    expected = kernels.linear(x, packed, threads=2)  # the parent's threads exist now
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    child = context.Process(target=_in_child, args=(packed, x, expected, answer))
    child.start()
    assert answer.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0


def test_the_threads_of_torch_and_our_own_make_the_same() -> None:
    packed = [kernels.pack(sparse(300, 200), form) for form in FORMS]
    x = torch.randn(100, 200)
    expected = [kernels.linear(x, p, threads=1) for p in packed]
    found = library._openmp()
    for team in (None, found):
        library.loaded().prunus_use_team(team)
        assert all(torch.equal(kernels.linear(x, p, threads=3), e) for p, e in zip(packed, expected, strict=True))
        assert torch.equal(torch.relu(torch.ones(1 << 20)), torch.ones(1 << 20))  # between two of ours, one of torch


FORKED = """
import multiprocessing, torch
from prunus.deploy import kernels
from prunus.deploy.kernels import library
torch.set_num_threads(2)
packed, x = kernels.pack(torch.randn(300, 200) * (torch.rand(300, 200) > 0.8)), torch.randn(100, 200)
expected = kernels.linear(x, packed, threads=1)
torch.relu(torch.ones(1 << 22))  # the threads of torch exist now, those of the kernels not
def child(answer):
    torch.set_num_threads(1)
    answer.put(torch.equal(kernels.linear(x, packed, threads=2), expected))
context = multiprocessing.get_context("fork")
answer = context.Queue()
one = context.Process(target=child, args=(answer,))
one.start()
print(answer.get(timeout=60))
one.join(60)
"""


def test_a_child_forked_before_the_first_call_does_not_wait_for_threads_of_its_parent() -> None:
    command = [sys.executable, "-c", FORKED]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.stdout.split() == ["True"], run.stderr[-2000:]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_bfloat16_values_and_activations(form: str, tokens: int) -> None:
    weight = sparse(60, 100, block=4)
    narrow = kernels.pack(weight, form, dtype=torch.bfloat16)
    assert torch.equal(narrow.dense(), weight.bfloat16())
    x = torch.randn(tokens, 100)
    same(kernels.linear(x, narrow), x @ weight.bfloat16().float().T)
    half = kernels.linear(x.bfloat16(), narrow)
    assert half.dtype == torch.bfloat16
    exact = (x.bfloat16().float() @ weight.bfloat16().float().T).bfloat16()
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=1e-2)


def test_minus_zero_is_a_zero() -> None:
    weight = torch.randn(64, 64) * (torch.rand(64, 64) > 0.9)  # negative weights times False
    assert torch.signbit(weight[weight == 0]).any()
    packed = kernels.pack(weight)
    assert int(packed.starts[-1]) == int((weight != 0).sum())
    assert torch.equal(packed.dense(), weight)


def test_forms_of_a_weight() -> None:
    blocks = sparse(64, 128, sparsity=0.9, block=8)
    assert {"4x1", "8x1"} <= set(kernels.forms_of(blocks)) and "16x1" not in kernels.forms_of(blocks, least=0.9)
    some = torch.zeros(8, 16)
    some.view(8, 4, 4)[:, :, 1:3] = 1.0
    assert kernels.forms_of(some)["2:4"] == 1.0
    assert "2:4" not in kernels.forms_of(torch.ones(8, 16))
    packed = kernels.pack(some, "2:4")
    same(kernels.linear(torch.ones(3, 16), packed), torch.full((3, 8), 8.0))


@pytest.mark.parametrize("form", FORMS)
def test_damaged_tensors_are_refused(form: str) -> None:
    packed = kernels.pack(sparse(70, 200, block=16), form)
    packed.check()
    for name in ("index", "counts", "starts"):
        tensor = getattr(packed, name)
        if tensor.numel() < 2:
            continue
        damaged = tensor.clone()
        damaged[0] = 255  # no column of a tile, more entries than there are, a tile that begins late
        bad = kernels.Packed(**{**vars(packed), name: damaged})
        with pytest.raises(DataError):
            bad.check()
    with pytest.raises(DataError):
        kernels.Packed(**{**vars(packed), "values": packed.values[:-1]}).check()


def uneven() -> Tensor:
    """A weight of whose rows some are empty, some full, and no two of the rest have as many values."""
    keep = torch.rand(150, 300) < torch.linspace(0, 0.5, 150).unsqueeze(1)
    keep[[7, 70, 149]], keep[[0, 64, 100]] = True, False
    return torch.randn(150, 300) * keep


def test_rows_of_any_lengths_lie_side_by_side() -> None:
    weight = uneven()
    packed = kernels.pack(weight, "rows")
    packed.check()
    assert torch.equal(packed.dense(), weight)
    assert int(packed.starts[-1]) < 2 * int(weight.count_nonzero())
    for tokens in (1, 20):
        x = torch.randn(tokens, 300)
        same(kernels.linear(x, packed), x @ weight.T)
        x[0, 11], x[0, 12] = INF, NAN  # what rows are filled up with may not turn infinity into NaN
        same(kernels.linear(x, packed), x @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_rows_are_filled_up_with_is_looked_at(dtype: torch.dtype) -> None:
    packed = kernels.pack(uneven(), "rows", dtype)
    entries, rows = packed.counts.view(-1, 2, 64).unbind(1)
    assert entries[0, 0] > entries[0, 7] > 0
    last = 8 * (int(entries[0, 0]) - 1) + 7  # behind the values of the eighth row
    assert packed.values[last] == 0

    def broken(name: str, place: int, value: float) -> None:
        changed = getattr(packed, name).clone()
        changed.view(-1)[place] = value
        with pytest.raises(DataError):
            kernels.Packed(**{**vars(packed), name: changed}).check()

    broken("values", last, 1.0)
    broken("index", last, int(packed.index[7]))  # a column that the row has
    broken("index", last, 300)
    broken("counts", 64, int(rows[0, 1]))  # a row twice
    broken("counts", 64, 64)
    broken("counts", 7, int(entries[0, 0]) + 1)
