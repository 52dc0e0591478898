"""Normalizations by the root mean square: how they are put right when positions leave the axis that they average.

With zeros at the removed positions the mean runs over all d positions, afterwards over the k that are left. For
`w x / sqrt(mean(x^2) + eps)` both are the same function of the kept x if eps becomes `eps d / k` and w becomes
`w sqrt(d / k)` (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4, written with both means). Means and variances of
LayerNorm have no such form: where they run over an axis, nothing leaves it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.repair import repairs, shapes_of, write_
from prunus.graph.running import FAILURES
from prunus.graph.wide import Wide


@dataclass(frozen=True)
class Norm:
    """A module that normalizes by the root mean square over the last axis of its input.

    Attributes:
        module: its path.
        weight: its parameter `[size]`, by its name within the module.
        eps: the attribute that holds epsilon, if it keeps one.
        offset: what the module adds to the parameter before it multiplies (1 in Gemma's form).
    """

    module: str
    weight: str
    eps: str | None
    offset: float

    @property
    def parameter(self) -> str:
        """The full name of the parameter."""
        return f"{self.module}.{self.weight}" if self.module else self.weight

    def apply_(self, model: nn.Module, dense: int, kept: int) -> list[tuple[str, float, float]]:
        """Put the module right after its axis went from `dense` to `kept`; `(attribute, before, after)` of epsilon."""
        module = model.get_submodule(self.module)
        weight = module._parameters[self.weight]
        assert weight is not None
        with torch.no_grad():
            weight.copy_((weight + self.offset) * (dense / kept) ** 0.5 - self.offset)
        if self.eps is None:
            return []
        old = float(vars(module)[self.eps])
        target = f"{self.module}.{self.eps}" if self.module else self.eps
        write_(model, target, old * dense / kept)
        return [(target, old, old * dense / kept)]


def find_norm(path: str, module: nn.Module, size: int) -> Norm | None:
    """The norm that a module is, found by trying both forms on a small copy in float64; None if it is no such module.

    It must have no children, one parameter, of shape `[size]`, and at most one small number that can be epsilon.
    """
    weights = [(n, p) for n, p in module.named_parameters(recurse=False)]
    if any(True for _ in module.children()) or len(weights) != 1 or tuple(weights[0][1].shape) != (size,):
        return None
    small = [n for n, v in vars(module).items() if type(v) is float and 0 < v < 0.1]
    if len(small) > 1 or size < 2:
        return None
    for offset in (0.0, 1.0):
        norm = Norm("", weights[0][0], small[0] if small else None, offset)
        if _tried(norm, module, size):
            return Norm(path, norm.weight, norm.eps, offset)
    return None


def _tried(norm: Norm, module: nn.Module, size: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    kept = max(size * 3 // 5, 1)
    dense = _copy(module, norm.weight, torch.rand(size, generator=generator, dtype=torch.float64) + 0.5)
    weight = dense._parameters[norm.weight]
    assert weight is not None
    compact = _copy(module, norm.weight, weight.detach()[:kept].clone())
    for name, _, new in list(repairs(compact, shapes_of(dense), shapes_of(compact))):
        write_(compact, name, new)
    norm.apply_(compact, size, kept)
    # As small as epsilon, so that a mistake in it shows.
    x = torch.randn(2, 3, size, generator=generator, dtype=torch.float64) * 1e-3
    x[..., kept:] = 0
    try:
        with torch.no_grad(), Wide():
            expected, found = dense(x), compact(x[..., :kept])
    except FAILURES:
        return False
    if not isinstance(expected, Tensor) or expected.shape != x.shape or found.shape != (2, 3, kept):
        return False
    return bool(torch.allclose(expected[..., :kept], found, rtol=1e-9, atol=0))


def _copy(module: nn.Module, weight: str, value: Tensor) -> nn.Module:
    parameter = module._parameters[weight]
    memo: dict[int, Any] = {id(parameter): nn.Parameter(value)}
    return copy.deepcopy(module, memo).eval()


def put_right_(small: nn.Module, dense: Mapping[str, Tensor], norms: Iterable[Norm]) -> list[tuple[str, float, float]]:
    """Compensate every norm whose axis became shorter than in `dense`; returns the attributes that changed."""
    changed: list[tuple[str, float, float]] = []
    now = dict(small.named_parameters(remove_duplicate=False))
    for norm in dict.fromkeys(norms):
        before, after = dense[norm.parameter].shape[0], now[norm.parameter].shape[0]
        if before != after:
            changed += norm.apply_(small, before, after)
    return changed
