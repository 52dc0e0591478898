"""How many parameters a model has, and how many of them are not zero. A tied weight is one parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunus.measure.inputs import check_materialized, uncompiled


class Count(NamedTuple):
    """Elements of one parameter: how many, and how many are not zero."""

    total: int
    nonzero: int


@dataclass(frozen=True)
class ParamCount:
    """Elements of a model's parameters. Buffers (running statistics, masks, positions) are counted apart.

    `tied` maps every further name of a shared weight to the name it is counted under. `unknown` elements are on the
    meta device: they have no value and are counted as nonzero.
    """

    total: int
    nonzero: int
    per_parameter: dict[str, Count]
    tied: dict[str, str]
    buffers: int
    unknown: int = 0

    @property
    def density(self) -> float:
        """nonzero / total; 1 for a model without parameters."""
        return self.nonzero / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        """1 - density: the fraction of all parameters that is zero."""
        return 1.0 - self.density

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; each parameter becomes `{"total", "nonzero"}`."""
        plain = asdict(self)
        plain["per_parameter"] = {name: count._asdict() for name, count in self.per_parameter.items()}
        return plain


def count_nonzero(tensor: Tensor) -> int:
    """Elements that are not zero; NaN is not zero. Any layout, any type."""
    if tensor.is_meta:
        return tensor.numel()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # float8 has no comparison kernels
    return int(torch.count_nonzero(tensor.detach()))


def place(tensor: Tensor) -> tuple[object, ...]:
    """A key that two tensors share when they are the same memory seen in the same way, whatever Python objects."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.untyped_storage().data_ptr() == 0:
        return (id(tensor),)
    start = tensor.untyped_storage().data_ptr()
    return (tensor.device, start, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """`(name, name it is counted under, tensor)` of every parameter name, tied names included."""
    first: dict[tuple[object, ...], str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, first.setdefault(place(parameter), name), parameter


def params(model: nn.Module) -> ParamCount:
    """Count the parameters of `model`, zeros apart, every tied weight once.

    Two names are tied when they are one `Parameter`, or two that are the same memory with the same shape.
    Cost: one pass over the weights. Raises `SpecError` for lazy parameters, which have no shape yet.
    """
    model = uncompiled(model)
    check_materialized(model)
    counts: dict[str, Count] = {}
    tied: dict[str, str] = {}
    unknown = 0
    for name, owner, parameter in named_parameters(model):
        if owner != name:
            tied[name] = owner
            continue
        counts[name] = Count(parameter.numel(), count_nonzero(parameter))
        unknown += parameter.numel() if parameter.is_meta else 0
    return ParamCount(
        total=sum(c.total for c in counts.values()),
        nonzero=sum(c.nonzero for c in counts.values()),
        per_parameter=counts,
        tied=tied,
        buffers=sum({place(b): b.numel() for b in model.buffers()}.values()),
        unknown=unknown,
    )
