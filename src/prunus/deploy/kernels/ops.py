"""The kernels as PyTorch operators, which eager mode, `torch.compile` and `torch.export` see."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import PrunusError, SpecError
from prunus.deploy.kernels.library import loaded
from prunus.deploy.kernels.packed import ACTIVATIONS, DTYPES, Activation, Packed, matrix, problem_of

_FAILED = {1: "the packed weight is not consistent", 2: "there is not enough memory"}


def _checked(x: Tensor, rows: int, bias: Tensor | None, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise SpecError(f"unknown activation {activation!r}: known are {', '.join(ACTIVATIONS)}")
    if x.dtype not in DTYPES:
        raise SpecError(f"the sparse kernels take float32 and bfloat16 inputs, not {x.dtype}")
    if bias is not None and tuple(bias.shape) != (rows,):
        raise SpecError(f"the bias has the shape {list(bias.shape)}, and the weight {rows} output channels")


def _call(function: Any, what: Any, x: Tensor, size: Any, bias: Tensor | None, act: str, y: Tensor, n: int) -> None:
    if bias is not None and not (bias.dtype == torch.float32 and bias.is_contiguous()):
        bias = bias.detach().to(torch.float32).contiguous()
    pointer = None if bias is None else bias.data_ptr()
    threads = n or _threads()
    half = x.dtype == torch.bfloat16
    failed = function(what, x.data_ptr(), half, size, pointer, ACTIVATIONS[act], y.data_ptr(), threads)
    if failed:
        raise PrunusError(f"a sparse kernel failed: {_FAILED.get(failed, failed)}")


_seen: dict[int, tuple[Any, tuple[Any, ...], Any]] = {}
"""By the id of a weight's values: a weak reference to them, what else the weight was, and what the library is told."""


def _matrix(values: Tensor, index: Tensor, counts: Tensor, starts: Tensor, rows: int, cols: int, form: str) -> Any:
    """A pointer to what the library is told about a weight.

    The weight is looked at again only where its memory is another one, or its table of tiles was written to.
    """
    version = -1 if starts.is_inference() else starts._version
    pointers = values.data_ptr(), index.data_ptr(), counts.data_ptr(), starts.data_ptr()
    stamp = (pointers, version, rows, cols, form)
    known = _seen.get(id(values))
    if known is not None and known[0]() is values and known[1] == stamp:
        return known[2]
    problem = problem_of(values, index, counts, starts, rows, cols, form)
    if problem:
        raise SpecError(f"these tensors are no packed weight [{rows}, {cols}] of form {form}: {problem}")
    told = ctypes.pointer(matrix(values, index, counts, starts, rows, cols, form))
    place = id(values)
    _seen[place] = (weakref.ref(values, lambda _: _seen.pop(place, None)), stamp, told)
    return told


# Bound here: a call that comes after others have had the caches touches less memory so.
_C: Any = torch._C
_compiling, _differentiating, _threads = torch.compiler.is_compiling, torch.is_grad_enabled, torch.get_num_threads
_dispatching, _overriding, _tracing = _C._len_torch_dispatch_stack, _C._len_torch_function_stack, _C._get_tracing_state
_transforming, _profiling = _C._functorch.peek_interpreter_stack, _C._autograd._profiler_enabled


def _plain(x: Tensor, values: Tensor, bias: Tensor | None) -> bool:
    """Whether the operator may be skipped and its body called: nobody records, traces or differentiates the call.

    PyTorch's way through a custom operator takes longer than some of the products.
    """
    if _compiling() or type(x) is not Tensor or not x.is_cpu:
        return False
    if _differentiating() and (x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    return not (
        _dispatching() or _overriding() or _tracing() is not None or _transforming() is not None or _profiling()
    )


_PACKED = "Tensor x, Tensor values, Tensor index, Tensor counts, Tensor starts, Tensor? bias"


def _linear(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    form: str,
    activation: str,
    threads: int,
) -> Tensor:
    """act(x Wᵀ + bias) [..., rows] of x [..., cols] and the packed W [rows, cols]; `threads` 0: as many as PyTorch."""
    _checked(x, rows, bias, activation)
    shape = x.shape
    if not shape or shape[-1] != cols:
        raise SpecError(f"the input has the shape {list(shape)}, and the weight {cols} input channels")
    if not x.is_contiguous():
        x = x.contiguous()
    y = x.new_empty((*shape[:-1], rows))
    what = _matrix(values, index, counts, starts, rows, cols, form)
    tokens = y.numel() // rows if rows else 0
    _call(loaded().prunus_linear, what, x, tokens, bias, activation, y, threads)
    return y


sparse_linear = torch.library.custom_op(
    "prunus::sparse_linear",
    _linear,
    mutates_args=(),
    device_types="cpu",
    schema=f"({_PACKED}, int rows, int cols, str form, str activation, int threads) -> Tensor",
)


@sparse_linear.register_fake
def _(x, values, index, counts, starts, bias, rows, cols, form, activation, threads):  # type: ignore[no-untyped-def]
    _checked(x, rows, bias, activation)
    torch._check(x.shape[-1] == cols, lambda: f"the input has {x.shape[-1]} channels, and the weight {cols}")
    return x.new_empty((*x.shape[:-1], rows))


def _out(size: Any, kernel: int, stride: int, padding: int, dilation: int) -> Any:
    """Positions along an axis, which a traced `size` may know only as a symbol."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@lru_cache(maxsize=1024)
def _geometry(
    x: Sequence[int], shape: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], Any]:
    """The output's height and width, and what the library is told. Remembered: it takes as long as a small product."""
    if min(*stride, *dilation) < 1 or min(*padding) < 0:
        raise SpecError(f"stride {list(stride)}, padding {list(padding)} or dilation {list(dilation)} is too small")
    height, width = (_out(x[2 + i], shape[2 + i], stride[i], padding[i], dilation[i]) for i in range(2))
    if height < 1 or width < 1:
        raise SpecError(f"an input of {x[2]} x {x[3]} is too small for a kernel of {shape[2]} x {shape[3]}")
    return (height, width), (ctypes.c_int64 * 12)(*x, *shape[2:], *stride, *padding, *dilation)


def _conv2d(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    counts: Tensor,
    starts: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    form: str,
    activation: str,
    threads: int,
) -> Tensor:
    """act(conv2d(x, W) + bias) [images, out, h, w] of x [images, in, height, width]; the packed W has `shape`."""
    rows, channels, kernel_h, kernel_w = shape
    _checked(x, rows, bias, activation)
    if x.ndim != 4 or x.shape[1] != channels:
        raise SpecError(f"the input has the shape {list(x.shape)}, and the weight {channels} input channels")
    if not x.is_contiguous():
        x = x.contiguous()
    size, geometry = _geometry(tuple(x.shape), tuple(shape), tuple(stride), tuple(padding), tuple(dilation))
    y = x.new_empty((x.shape[0], rows, *size))
    what = _matrix(values, index, counts, starts, rows, channels * kernel_h * kernel_w, form)
    _call(loaded().prunus_conv2d, what, x, ctypes.addressof(geometry), bias, activation, y, threads)
    return y


sparse_conv2d = torch.library.custom_op(
    "prunus::sparse_conv2d",
    _conv2d,
    mutates_args=(),
    device_types="cpu",
    schema=f"({_PACKED}, int[] shape, int[] stride, int[] padding, int[] dilation, str form, str activation, "
    "int threads) -> Tensor",
)


@sparse_conv2d.register_fake
def _(x, values, index, counts, starts, bias, shape, stride, padding, dilation, form, activation, threads):  # type: ignore[no-untyped-def]
    _checked(x, shape[0], bias, activation)
    size = (_out(x.shape[2 + i], shape[2 + i], stride[i], padding[i], dilation[i]) for i in range(2))
    return x.new_empty((x.shape[0], shape[0], *size))


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise PrunusError("the sparse kernels have no backward pass: train the dense model, or run under torch.no_grad()")


sparse_linear.register_autograd(_refuse)
sparse_conv2d.register_autograd(_refuse)


def linear_with(x: Tensor, weight: tuple[Tensor, Tensor, Tensor, Tensor], bias: Tensor | None, *how: Any) -> Tensor:
    """`sparse_linear`, by the shortest way; `how` is what it takes after the bias."""
    run = _linear if _plain(x, weight[0], bias) else sparse_linear
    y: Tensor = run(x, *weight, bias, *how)
    return y


def conv2d_with(x: Tensor, weight: tuple[Tensor, Tensor, Tensor, Tensor], bias: Tensor | None, *how: Any) -> Tensor:
    """`sparse_conv2d`, by the shortest way; `how` is what it takes after the bias."""
    run = _conv2d if _plain(x, weight[0], bias) else sparse_conv2d
    y: Tensor = run(x, *weight, bias, *how)
    return y


def linear(
    x: Tensor, packed: Packed, bias: Tensor | None = None, activation: Activation = "none", threads: int = 0
) -> Tensor:
    """act(x Wᵀ + bias) with a packed weight.

    Args:
        x: [..., in], float32 or bfloat16, on the CPU; sums are float32.
        packed: of a weight [out, in].
        bias: [out].
        activation: applied to the result: none, relu or gelu (with erf).
        threads: 0 for as many as PyTorch uses. Results do not depend on it.

    Returns: [..., out] of x's type. NaN and infinity in x reach all that they reach in a dense product.
    Cost: the weights that are left times the tokens; one copy of x, tokens turned into columns.
    Errors: `SpecError` for types and shapes that do not fit; `PrunusError` without the library, and in a backward pass.
    """
    if len(packed.shape) != 2:
        raise SpecError(f"a packed weight of shape {list(packed.shape)} is a convolution's: use conv2d")
    return linear_with(x, packed.tensors, bias, *packed.shape, packed.form, activation, threads)


def conv2d(
    x: Tensor,
    packed: Packed,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    activation: Activation = "none",
    threads: int = 0,
) -> Tensor:
    """act(conv2d(x, W) + bias) with a packed weight, without groups.

    Args:
        x: [images, in, height, width], float32 or bfloat16, on the CPU.
        packed: of a weight [out, in, kernel height, kernel width].
        bias: [out].
        stride, padding, dilation: numbers or pairs, as `torch.nn.functional.conv2d` takes them; padding is zeros.
        activation, threads: as for `linear`.

    Returns: [images, out, height', width'] of x's type, contiguous.
    Cost: the weights that are left times the output positions; one padded copy of x in float32.
    Errors: as for `linear`.
    """
    if len(packed.shape) != 4:
        raise SpecError(f"a packed weight of shape {list(packed.shape)} is a linear map's: use linear")
    pairs = ([v, v] if isinstance(v, int) else list(v) for v in (stride, padding, dilation))
    return conv2d_with(x, packed.tensors, bias, list(packed.shape), *pairs, packed.form, activation, threads)
