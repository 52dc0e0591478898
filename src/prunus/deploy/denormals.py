"""Numbers too small for full precision, which processors compute with up to a hundred times slower, made zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError


def flush_denormals_(model: nn.Module) -> dict[str, int]:
    """Set every parameter and buffer entry that is not zero but below its type's least normal number to zero.

    Args:
        model: changed in place; outputs change by less than the least normal number times the inputs.

    Returns: how many entries of which tensor were set, those without any left out.
    Cost: one pass over the weights. Errors: `SpecError` for weights on the meta device.
    """
    found: dict[str, int] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            continue
        if tensor.is_meta:
            raise SpecError(f"{name} is on the meta device and has no values: load the weights first")
        tiny = denormal(tensor.detach())
        if count := int(tiny.sum()):
            with torch.no_grad():
                tensor.masked_fill_(tiny, 0)
            found[name] = count
    return found


def denormals_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers of which tensor `flush_denormals_` would make zeros, those without any left out.

    Cost: one pass, some megabytes at a time.
    """
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _BITS or tensor.layout != torch.strided or tensor.is_meta:
            continue
        whole = tensor.detach() if tensor.dim() else tensor.detach()[None]
        pieces = whole.split(max(1, _PIECE // max(1, whole[:1].numel())))
        if count := sum(int(denormal(piece).sum()) for piece in pieces):
            found[name] = count
    return found


@contextmanager
def arithmetic_kept() -> Iterator[None]:
    """This thread computes with denormal numbers afterwards as it did before, whatever a library sets inside."""
    flushed = bool((torch.full((1,), torch.finfo(torch.float32).tiny) * 0.25 == 0).item())
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


_PIECE = 1 << 20  # numbers that are looked at in one piece
# Sign and fraction are masked apart in the bits: arithmetic may take such numbers as zero already. float16 is left out:
# processors compute with its small numbers as ordinary ones of float32.
_BITS = {
    torch.float64: (torch.int64, 0x7FF0000000000000, 0x000FFFFFFFFFFFFF),
    torch.float32: (torch.int32, 0x7F800000, 0x007FFFFF),
    torch.bfloat16: (torch.int16, 0x7F80, 0x007F),
}


def denormal(tensor: Tensor) -> Tensor:
    """Where a tensor of floating point is not zero and below its type's least normal number; nowhere in float16."""
    if tensor.dtype not in _BITS:
        return torch.zeros_like(tensor, dtype=torch.bool)
    whole, exponent, fraction = _BITS[tensor.dtype]
    bits = tensor.view(whole)
    return ((bits & exponent) == 0) & ((bits & fraction) != 0)
