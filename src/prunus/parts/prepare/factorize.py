"""Layers as products of two, so that singular components are units."""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError, WeightsError, listed
from prunus.core.factors import Factors
from prunus.core.part import Preparation

Split = Literal["even", "in", "out"]


@dataclass(frozen=True)
class Factorize(Preparation):
    """W = U S V^T: every linear layer and convolution becomes two, whose product it is, so that a singular component is
    a neuron between them (truncated SVD: Denton et al. 2014, arXiv:1404.0736; of unfolded kernels `[out, in*kh*kw]`,
    Zhang et al. 2015, arXiv:1505.06798).

    Outputs stay the same but for rounding, which is that of float64 before the factors are stored in the weight's own
    type. Taken are layers of exactly the classes `Linear`, `Conv1d`, `Conv2d` and `Conv3d` without groups, with at
    least 2 inputs and outputs, whose weight no other module shares and no hook computes. The rank is the full one at
    first, so the network is larger than before until components are removed: a layer is smaller than it was below
    out * in / (out + in) components. What is a product already stays as it is. Cost: one singular value decomposition
    per layer.

    Fails: `SpecError` where no layer can be taken, `WeightsError` for NaN; nothing was changed.

    Attributes:
        split: which factor holds the singular values: `in` the first, `out` the second, `even` their roots in both.
        exclude: names of layers, with shell wildcards, that stay as they are.
        skip_last: leave the last layer (the classifier) as it is.
    """

    split: Split = "even"
    exclude: tuple[str, ...] = ()
    skip_last: bool = False

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise SpecError(f"Factorize(split={self.split!r}): one of {', '.join(get_args(Split))}")

    def __call__(self, model: nn.Module, example: Any = None, task: Any = None) -> nn.Module:
        found, written = unwritten(model, Factors, self.exclude, skip_last=self.skip_last)
        if not found and not written:
            raise SpecError(f"Factorize finds no layer of {type(model).__name__} that it can write as a product")
        check_finite(model, found)
        return replaced(model, {m: product(m, self.split) for m in found})


def unwritten(
    model: nn.Module, done: type[nn.Module], exclude: tuple[str, ...], *, skip_last: bool
) -> tuple[list[nn.Module], bool]:
    """The layers that can be written anew as modules of a class, and whether some are so already."""
    written = [m for m in model.modules() if isinstance(m, done)]
    inside = {part for m in written for part in m.modules()} - set(written)
    found = [
        m
        for n, m in model.named_modules()
        if n and m not in inside and (isinstance(m, done) or writable(m, model)) and not _named(n, exclude)
    ]
    return [m for m in (found[:-1] if skip_last else found) if not isinstance(m, done)], bool(written)


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, p) for p in patterns)


def writable(module: nn.Module, model: nn.Module) -> bool:
    """Whether a module's weight is its own, and all that it computes with beside its bias."""
    if type(module) not in MAPS or getattr(module, "groups", 1) != 1:
        return False
    own = module._parameters.get("weight")
    shared = sum(p is own for m in model.modules() for p in m._parameters.values()) > 1
    hooked = module._forward_pre_hooks or module._forward_hooks
    return own is not None and not shared and not hooked and min(own.shape[0], own[0].numel()) >= 2


def product(module: nn.Module, split: Split, rank: int | None = None) -> Factors:
    """The two maps that a module is written as; with a rank, of so many largest components alone."""
    weight = module._parameters["weight"]
    assert weight is not None
    u, s, v = torch.linalg.svd(weight.detach().double().flatten(1), full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    inner, outer = {"even": (s.sqrt(), s.sqrt()), "in": (s, s**0), "out": (s**0, s)}[split]
    first, second = MAPS[type(module)](module, len(s))
    pair = Factors(first, second).to_empty(device=weight.device).to(weight.dtype).train(module.training)
    with torch.no_grad():
        _write(first, (inner.unsqueeze(1) * v).reshape(len(s), *weight.shape[1:]), weight)
        _write(second, (u * outer).reshape(len(weight), len(s), *[1] * (weight.ndim - 2)), weight)
    if (bias := module._parameters.get("bias")) is not None:
        second._parameters["bias"] = bias
    return pair


def check_finite(model: nn.Module, found: list[nn.Module]) -> None:
    """Refuse weights that have no singular values."""
    if bad := [n for n, m in model.named_modules() if m in found and not _finite(m)]:
        raise WeightsError(f"{listed(bad)} hold NaN or infinite weights, of which no product is made; reload them")


def replaced(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The model with other modules in the place of some, in place."""
    for owner in list(model.modules()):
        for name, child in list(owner._modules.items()):
            if child is not None and child in made:
                owner._modules[name] = made[child]
    return model


def _finite(module: nn.Module) -> bool:
    weight = module._parameters["weight"]
    return weight is not None and bool(weight.isfinite().all())


def _write(module: nn.Module, value: Tensor, like: nn.Parameter) -> None:
    weight = module._parameters["weight"]
    assert weight is not None
    weight.copy_(value).requires_grad_(like.requires_grad)


def _linear(module: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    bias = module.bias is not None
    first = nn.Linear(module.in_features, rank, bias=False, device="meta")
    return first, nn.Linear(rank, module.out_features, bias=bias, device="meta")


def _convolution(module: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    kind = type(module)
    where = {k: getattr(module, k) for k in ("stride", "padding", "dilation", "padding_mode")}
    first = kind(module.in_channels, rank, module.kernel_size, bias=False, device="meta", **where)
    return first, kind(rank, module.out_channels, 1, bias=module.bias is not None, device="meta")


# Made without memory: there is nothing to initialize, and no random number is drawn.
MAPS: dict[type[nn.Module], Callable[[Any, int], tuple[nn.Module, nn.Module]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
}
