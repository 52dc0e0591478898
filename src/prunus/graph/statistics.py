"""Normalizations whose mean and variance run over a pruned axis: what they compute from then on, as a reference.

LayerNorm (Ba et al. 2016, arXiv:1607.06450, equation 4) subtracts a mean over d positions. Where k of them are left,
the mean and variance are those of the k, and no weight or epsilon makes them those of the d again (`norms.py` does so
for the root mean square). Such a removal is not exact. It is only done where it was asked for, and what is proved then
is that the compact model equals the masked one whose normalizations look at the kept positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.graph.higher import Throughout, is_higher


@contextmanager
def kept_statistics(model: nn.Module, keeps: Mapping[str, Bool[Tensor, "d"]]) -> Iterator[None]:
    """Within it, normalizations with these weights (by name, True = kept) take no notice of the other positions."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with _Kept({parameters[name].data_ptr(): keep for name, keep in keeps.items()}):
        yield


class _Kept(Throughout):
    """Normalizes over the kept positions; at the others the output is zero."""

    def __init__(self, keeps: Mapping[int, Bool[Tensor, "d"]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keeps = keeps

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_higher(func):
            return self.inside(func, args, kwargs)
        kwargs = kwargs or {}
        place = _WEIGHT.get(func.overloadpacket.__name__)
        weight = args[place] if place is not None else None
        keep = self.keeps.get(weight.data_ptr()) if isinstance(weight, Tensor) else None
        if place is None or keep is None:
            return func(*args, **kwargs)
        tensor = args[0]
        axis = tensor.dim() - 1 if place == 2 else 1
        at = keep.to(tensor.device).nonzero().reshape(-1)
        vectors = [v if v is None else v.index_select(0, at) for v in args[place : place + 2]]
        part = tensor.index_select(axis, at)
        if place == 2:
            found = func(part, [at.numel()], *vectors, *args[4:], **kwargs)
        else:
            batch, _, extent, parts, eps = args[3:8]
            found = func(part.contiguous(), *vectors, batch, at.numel(), extent, parts, eps, **kwargs)
        whole = torch.zeros_like(tensor).index_copy_(axis, at, found[0])
        return (whole, *found[1:])


# Where the weight stands among the arguments; the bias follows it.
_WEIGHT = {"native_layer_norm": 2, "native_group_norm": 1}
