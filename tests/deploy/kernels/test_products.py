"""Products and convolutions with packed weights against the dense ones in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.deploy import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=kernels.reason() or "kernels")

FORMS = ("csr", "rows", "bitmask", "bitrows", "4x1", "8x1", "16x1")
SHAPES = ((1, 1), (5, 3), (64, 64), (65, 129), (100, 300), (17, 1000))
LEVELS = ("baseline", "v3", "v4")
ACT: dict[str, Any] = {"none": lambda v: v, "relu": F.relu, "gelu": F.gelu}


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Any:
    before = kernels.level()
    try:
        kernels.use_level(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    kernels.use_level(before)


def sparse(shape: tuple[int, ...], form: str, sparsity: float = 0.7) -> Tensor:
    """A random weight whose zeros are of the form; some rows empty, some full."""
    rows = int(form.partition("x")[0]) if "x" in form else 1
    cols = torch.Size(shape[1:]).numel()
    keep = torch.rand(-(-shape[0] // rows), cols) >= sparsity
    if len(keep) > 2:
        keep[0], keep[1] = False, True
    return (torch.randn(shape[0], cols) * keep.repeat_interleave(rows, 0)[: shape[0]]).view(shape)


def off(found: Tensor, exact: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_is_the_dense_product(level: str, form: str, shape: tuple[int, int]) -> None:
    weight, bias = sparse(shape, form), torch.randn(shape[0])
    packed = kernels.pack(weight, form)
    packed.check()
    assert torch.equal(packed.dense(), weight)
    for tokens in (1, 2, 7, 8, 9, 33, 64, 65, 130, 300):
        x = torch.randn(tokens, shape[1])
        exact = x.double() @ weight.double().T + bias.double()
        for name, act in ACT.items():
            assert off(kernels.linear(x, packed, bias, name), act(exact)) < 1e-5, (tokens, name)  # type: ignore[arg-type]
        assert off(kernels.linear(x, packed), exact - bias.double()) < 1e-5


@pytest.mark.parametrize("form", ["csr", "4x1", "8x1", "16x1"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_sparser_weights_have_wider_tiles(form: str, sparsity: float) -> None:
    weight = sparse((2100, 1100), form, sparsity)  # also more rows than a task takes at once
    packed = kernels.pack(weight, form)
    packed.check()
    assert torch.equal(packed.dense(), weight)
    assert (packed.tile > (96 if form == "csr" else 256)) == (sparsity > 0.8)
    assert packed.index.dtype == packed.counts.dtype == (torch.uint8 if packed.tile < 256 else torch.int16)
    for tokens in (1, 70):
        x = torch.randn(tokens, 1100)
        assert off(kernels.linear(x, packed), x.double() @ weight.double().T) < 1e-5


CONVOLUTIONS = (
    # out, in, height, width, kernel, stride, padding, dilation, images
    (8, 3, 7, 9, (3, 3), 1, 1, 1, 2),
    (20, 5, 16, 16, (3, 3), 2, 1, 1, 1),
    (64, 16, 30, 30, (3, 3), 1, 1, 1, 3),
    (30, 8, 12, 12, (1, 1), 1, 0, 1, 2),
    (30, 8, 12, 12, (1, 1), 2, 0, 1, 2),
    (30, 8, 12, 12, (1, 1), 1, 2, 1, 2),
    (16, 4, 9, 7, (3, 3), 1, 3, 1, 3),
    (16, 4, 9, 7, (5, 5), 1, 1, 1, 3),
    (16, 4, 20, 20, (5, 5), 1, 2, 2, 1),
    (16, 4, 20, 33, (3, 5), (1, 2), (0, 2), (2, 1), 2),
    (70, 64, 24, 24, (3, 3), 1, 1, 1, 1),
    (4, 2, 3, 3, (3, 3), 1, 0, 1, 5),
    (6, 2, 40, 5, (7, 1), 1, (3, 0), 1, 2),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_is_the_dense_one(level: str, form: str, case: Any) -> None:
    out, channels, height, width, kernel, stride, padding, dilation, images = case
    weight, bias = sparse((out, channels, *kernel), form), torch.randn(out)
    x = torch.randn(images, channels, height, width)
    packed = kernels.pack(weight, form)
    assert torch.equal(packed.dense(), weight)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, dilation)
    for name, act in ACT.items():
        found = kernels.conv2d(x, packed, bias, stride, padding, dilation, name)  # type: ignore[arg-type]
        assert found.shape == exact.shape and found.is_contiguous()
        assert off(found, act(exact)) < 1e-5
