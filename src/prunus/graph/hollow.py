"""Runs in which products are not computed: where atoms flow does not depend on the numbers in a tensor.

Matrix products and convolutions are most of the work of a forward, and only the shape of what they return is needed. A
hollow run puts zeros in its place and remembers what was computed from such zeros. As soon as something would depend on
these numbers (a branch of the code, an index, a mask), or they would be written into a tensor that the model keeps, the
run is given up, and the model has to be run in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Shape = Callable[..., tuple[int, ...]]


class Dependent(BaseException):
    """Something depends on the numbers. No `Exception`: forwards catch these."""


def _convolved(x: Tensor, weight: Tensor, _: Any, stride: Any, padding: Any, dilation: Any, *rest: Any) -> Any:
    transposed, extra, groups = rest[:3]
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    space = []
    for i, (size, kernel) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True)):
        step, pad, gap = (v[i] if len(v) > 1 else v[0] for v in (stride, padding, dilation))
        span = gap * (kernel - 1)
        if transposed:
            space.append((size - 1) * step - 2 * pad + span + (extra[i] if len(extra) > 1 else extra[0]) + 1)
        else:
            space.append((size + 2 * pad - span - 1) // step + 1)
    return (x.shape[0], channels, *space)


_SHAPES: dict[str, Shape] = {
    "mm": lambda a, b: (a.shape[0], b.shape[1]),
    "addmm": lambda c, a, b: (a.shape[0], b.shape[1]),
    "bmm": lambda a, b: (*a.shape[:2], b.shape[2]),
    "baddbmm": lambda c, a, b: (*a.shape[:2], b.shape[2]),
    "linear": lambda x, weight, bias=None: (*x.shape[:-1], weight.shape[0]),
    "convolution": _convolved,
    "matmul": lambda a, b: (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]),
    "attention": lambda q, k, v: (*q.shape[:-1], v.shape[-1]),
}
# Pairs of lengths that the operation itself demands to be equal.
_PAIRS: dict[str, Callable[..., tuple[tuple[int, int], ...]]] = {
    "mm": lambda a, b: ((a.shape[1], b.shape[0]),),
    "addmm": lambda c, a, b: ((a.shape[1], b.shape[0]),),
    "bmm": lambda a, b: ((a.shape[0], b.shape[0]), (a.shape[2], b.shape[1])),
    "baddbmm": lambda c, a, b: ((a.shape[0], b.shape[0]), (a.shape[2], b.shape[1])),
    "linear": lambda x, weight, bias=None: ((x.shape[-1], weight.shape[-1]),),
    "convolution": lambda x, w, *rest: ((x.shape[1], w.shape[0] if rest[4] else w.shape[1] * rest[6]),),
    "matmul": lambda a, b: ((a.shape[-1], b.shape[-2]),),
    "attention": lambda q, k, v: ((q.shape[-1], k.shape[-1]), (k.shape[-2], v.shape[-2])),
}
# These take the shape and the type of a tensor, not its numbers.
_FRESH = frozenset(
    (
        "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros_like", "ones_like", "full_like",
        "empty_like", "rand_like", "randn_like", "randint_like",
    )
)  # fmt: skip
_TELLING = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
_READS = frozenset(("tolist", "numpy", "__array__"))


class Hollow:
    """What of one run of `model` is not computed, and what is computed from it."""

    def __init__(self, model: nn.Module) -> None:
        self._known: Any = WeakTensorKeyDictionary()
        kept = [*model.parameters(), *model.buffers()]
        kept += [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)]
        self._kept = {_memory(t) for t in kept}

    def run(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: Sequence[Tensor],
    ) -> Any:
        """The output of an operation, zeros if it is a product.

        Raises:
            Dependent: it reads numbers that are not the model's.
        """
        shape = _SHAPES.get(name)
        if shape is not None and inputs[0].is_floating_point() and not {"out", "out_dtype"} & set(kwargs):
            if any(one != other for one, other in _PAIRS[name](*args)):
                raise RuntimeError(f"{name} of shapes that do not fit: {[tuple(t.shape) for t in inputs]}")
            found = inputs[0].new_zeros(shape(*args))
            self._known[found] = True
            return found
        given = [] if name in _FRESH else [t for t in inputs if t in self._known]
        if any(not (t.is_floating_point() or t.is_complex()) for t in given):
            raise Dependent
        if given and not _TELLING.isdisjoint(func.tags):  # type: ignore[attr-defined]
            raise Dependent
        if given and func._schema.is_mutable and any(_memory(t) in self._kept for t in inputs):  # type: ignore[attr-defined]
            raise Dependent
        out = func(*args, **kwargs)
        if given:
            made = [t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)]
            if not made and out is not None:
                raise Dependent
            for tensor in made:
                self._known[tensor] = True
        return out

    def check(self, name: str, args: tuple[Any, ...]) -> None:
        """Some methods read numbers without an operation."""
        if name in _READS and args and isinstance(args[0], Tensor) and args[0] in self._known:
            raise Dependent


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # a tensor without memory of its own
        return id(tensor)
