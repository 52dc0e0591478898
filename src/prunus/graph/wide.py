"""float64 also where a forward asks for float32, or for a kernel that takes no float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

GROUPED: frozenset[Callable[..., Any]] = frozenset(
    f for f in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)) if f
)
"""PyTorch's products with stacks of matrices, which take float32 and bfloat16 (2.13)."""


class Wide(TorchFunctionMode):
    """Turns every request for float32 into one for float64.

    Normalizations and softmaxes are often written with a cast to float32, which would limit a proof in float64 to seven
    digits. Rows times a stack of matrices (`grouped_mm`, how transformers runs experts) are multiplied one matrix at a
    time, as PyTorch has no kernel for them in float64.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {k: _wide(v) for k, v in (kwargs or {}).items()}
        if func is torch.Tensor.float:
            return args[0].double()
        if func in GROUPED and _rows_of_stack(*args, **kwargs):
            return grouped(args[0], args[1], kwargs["offs"])
        return func(*(_wide(a) for a in args), **kwargs)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _rows_of_stack(rows: Tensor, stack: Tensor, *more: Any, offs: Tensor | None = None, **others: Any) -> bool:
    asked = [v for v in (*more, *others.values()) if v is not None]
    return not asked and offs is not None and rows.dtype == torch.float64 and (rows.ndim, stack.ndim) == (2, 3)


def grouped(
    rows: Float[Tensor, "rows inner"], stack: Float[Tensor, "matrices inner outer"], offs: Int[Tensor, "matrices"]
) -> Float[Tensor, "rows outer"]:
    """Rows up to `offs[0]` times the first matrix, those up to `offs[1]` times the second; zeros after the last."""
    found = rows.new_zeros(len(rows), stack.shape[2])
    for matrix, (start, stop) in zip(stack, pairwise([0, *offs.tolist()]), strict=True):
        found[start:stop] = rows[start:stop] @ matrix
    return found
