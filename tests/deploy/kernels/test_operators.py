"""The operators as torch sees them: fake kernels, compiled, exported, and refused where they cannot help."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.core.errors import PrunusError, SpecError
from prunus.deploy import kernels

importlib.import_module("prunus.deploy.kernels.ops")  # defines the operators
pytestmark = pytest.mark.skipif(not kernels.available(), reason=kernels.reason() or "kernels")


class Sparse(nn.Module):
    """A linear map and a convolution on packed weights, held as buffers."""

    def __init__(self, line: Tensor, conv: Tensor, form: str) -> None:
        super().__init__()
        self.line, self.conv = kernels.pack(line, form), kernels.pack(conv, form)
        self.bias = nn.Parameter(torch.randn(conv.shape[0]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        # The operators themselves: the tests' check of types wraps kernels.linear in what torch.compile cannot trace.
        ops, line, conv = torch.ops.prunus, self.line, self.conv
        one = [1, 1]
        y = ops.sparse_conv2d(x, *conv.tensors, self.bias, list(conv.shape), one, one, one, conv.form, "relu", 0)
        return ops.sparse_linear(y.mean((2, 3)) + 1.0, *line.tensors, None, *line.shape, line.form, "gelu", 0) * 2.0


@pytest.fixture
def made() -> tuple[Sparse, Tensor, Tensor]:
    line, conv = (torch.randn(s) * (torch.rand(s) > 0.7) for s in ((20, 24), (24, 5, 3, 3)))
    x = torch.randn(3, 5, 9, 9)
    module = Sparse(line, conv, "csr")
    expected = F.gelu((F.relu(F.conv2d(x, conv, module.bias, padding=1)).mean((2, 3)) + 1.0) @ line.T) * 2.0
    return module, x, expected


def test_eager(made: Any) -> None:
    module, x, expected = made
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_exported_program_computes_the_same(made: Any) -> None:
    module, x, expected = made
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    assert {"prunus.sparse_linear.default", "prunus.sparse_conv2d.default"} <= {
        str(n.target) for n in program.graph.nodes
    }
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
    assert program.module()(x[:2]).shape == (2, 20)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_in_one_graph(made: Any, backend: str) -> None:
    module, x, expected = made
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["csr", "rows", "bitmask", "bitrows", "8x1"])
def test_operators_keep_torchs_rules(form: str) -> None:
    line, conv = torch.randn(9, 12), torch.randn(6, 3, 3, 3)
    packed, kernel = kernels.pack(line, form), kernels.pack(conv, form)
    torch.library.opcheck(
        torch.ops.prunus.sparse_linear.default,
        (torch.randn(2, 4, 12), *packed.tensors, torch.randn(9), 9, 12, form, "gelu", 0),
    )
    torch.library.opcheck(
        torch.ops.prunus.sparse_conv2d.default,
        (torch.randn(2, 3, 8, 8), *kernel.tensors, None, [6, 3, 3, 3], [2, 2], [1, 1], [1, 1], form, "none", 0),
    )


class Seen(TorchDispatchMode):
    """Which operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_whoever_watches_operators_sees_them() -> None:
    packed, kernel = kernels.pack(torch.randn(9, 12)), kernels.pack(torch.randn(6, 3, 3, 3))
    x, image = torch.randn(2, 12), torch.randn(2, 3, 8, 8)
    with Seen() as seen:
        kernels.linear(x, packed)
        kernels.conv2d(image, kernel)
    assert {"prunus.sparse_linear.default", "prunus.sparse_conv2d.default"} <= set(seen.names)
    with torch.profiler.profile() as profile:
        kernels.linear(x, packed)
    assert "prunus::sparse_linear" in {event.key for event in profile.key_averages()}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert kernels.linear(mode.from_tensor(x), packed).shape == (2, 9)


def test_a_weight_is_looked_at_again_when_its_memory_is_another() -> None:
    one, other = torch.randn(9, 12), torch.randn(9, 12)
    packed, x = kernels.pack(one), torch.randn(2, 12)
    torch.testing.assert_close(kernels.linear(x, packed), x @ one.T)
    for mine, new in zip(packed.tensors, kernels.pack(other).tensors, strict=True):
        mine.set_(new)
    torch.testing.assert_close(kernels.linear(x, packed), x @ other.T)
    packed.starts[-1] += 1
    with pytest.raises(SpecError, match="no packed weight"):
        kernels.linear(x, packed)


def test_a_backward_pass_is_refused_in_words() -> None:
    x = torch.randn(2, 12, requires_grad=True)
    y = kernels.linear(x, kernels.pack(torch.randn(9, 12)))
    with pytest.raises(PrunusError, match="no backward pass"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p, c: kernels.linear(torch.randn(2, 11), p), "12 input channels"),
        (lambda p, c: kernels.linear(torch.randn(2, 12).double(), p), "float32 and bfloat16"),
        (lambda p, c: kernels.linear(torch.randn(2, 12), p, torch.randn(8)), "9 output channels"),
        (
            lambda p, c: torch.ops.prunus.sparse_linear(torch.randn(2, 12), *p.tensors, None, 9, 12, "csr", "tanh", 0),
            "none, relu, gelu",
        ),
        (lambda p, c: kernels.linear(torch.randn(2, 12), c), "use conv2d"),
        (lambda p, c: kernels.conv2d(torch.randn(2, 3, 8, 8), p), "use linear"),
        (lambda p, c: kernels.conv2d(torch.randn(2, 4, 8, 8), c), "3 input channels"),
        (lambda p, c: kernels.conv2d(torch.randn(2, 3, 2, 8), c), "too small"),
        (lambda p, c: kernels.conv2d(torch.randn(2, 3, 8, 8), c, stride=0), "too small"),
        (lambda p, c: kernels.pack(torch.randn(4, 4), "3x1"), "unknown form"),
        (lambda p, c: kernels.pack(torch.randn(4, 4), "5:4"), "unknown form"),
        (lambda p, c: kernels.pack(torch.randn(4, 4), "2:4"), "not 2:4"),
        (lambda p, c: kernels.pack(torch.randn(4, 4, 4)), "two or four axes"),
        (lambda p, c: kernels.pack(torch.randn(4, 4).double()), "float32 or bfloat16"),
        (lambda p, c: kernels.pack(torch.randn(4, 4), dtype=torch.float16), "float32 or bfloat16"),
    ],
)
def test_refusals_say_what_is_wrong(call: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        call(kernels.pack(torch.randn(9, 12)), kernels.pack(torch.randn(6, 3, 3, 3)))
