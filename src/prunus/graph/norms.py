"""Normalizations by means of squares or of sizes: how they are put right when positions leave the averaged axis.

With zeros at the removed positions the mean runs over all d positions, afterwards over the k that are left. For
`w x / sqrt(mean(x^2) + eps)` both are the same function of the kept x if eps becomes `eps d / k` and w becomes
`w sqrt(d / k)` (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4, written with both means). For the global response
normalization `w x g / (mean(g) + eps)` of sizes g >= 0 (Woo et al. 2023, arXiv:2301.00808, equation 2) w becomes
`w d / k`. Means and variances of LayerNorm have no such form: where they run over an axis, nothing leaves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.duplicate import duplicate
from prunus.graph.repair import repairs, shapes_of, write_
from prunus.graph.running import FAILURES
from prunus.graph.wide import Wide


@dataclass(frozen=True)
class Norm:
    """A module that normalizes by a mean over one axis of its input.

    Attributes:
        module: its path.
        weight: its parameter with one entry for each position, by its name within the module.
        eps: the attribute that holds epsilon, if it keeps one.
        offset: what the module adds to the parameter before it multiplies (1 in Gemma's form).
        power: of the mean by which it divides: 0.5 where this is one of squares.
    """

    module: str
    weight: str
    eps: str | None
    offset: float
    power: float = 0.5

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
            weight.copy_((weight + self.offset) * (dense / kept) ** self.power - self.offset)
        if self.eps is None:
            return []
        old = float(vars(module)[self.eps])
        target = f"{self.module}.{self.eps}" if self.module else self.eps
        write_(model, target, old * dense / kept)
        return [(target, old, old * dense / kept)]


def find_norm(path: str, module: nn.Module, size: int, dim: int = 3, axis: int = -1) -> Norm | None:
    """The norm that a module is over `axis` of an input of `dim` axes; None if it is no such module.

    Found by trying all forms on a small copy in float64. The module must have no parameters but such of its own with
    one entry per position (a scale, a shift), and at most one small number that can be epsilon.
    """
    weights = [(n, p) for n, p in module.named_parameters(recurse=False)]
    if any(p.numel() != size or max(p.shape, default=1) != size for p in module.parameters()) or size < 2:
        return None
    small = [n for n, v in vars(module).items() if type(v) is float and 0 < v < 0.1]
    if len(small) > 1 or len(weights) != sum(1 for _ in module.parameters()):
        return None
    for name, _ in weights:
        for power, offset in ((0.5, 0.0), (0.5, 1.0), (1.0, 0.0)):
            norm = Norm("", name, small[0] if small else None, offset, power)
            if _tried(norm, module, size, dim, axis % dim):
                return replace(norm, module=path)
    return None


def _tried(norm: Norm, module: nn.Module, size: int, dim: int, axis: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    kept = max(size * 3 // 5, 1)
    values = {
        name: torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5
        for name, p in module.named_parameters(recurse=False)
    }
    dense = _copy(module, values)
    compact = _copy(module, {n: v.narrow(v.shape.index(size), 0, kept).clone() for n, v in values.items()})
    for name, _, new in list(repairs(compact, shapes_of(dense), shapes_of(compact))):
        write_(compact, name, new)
    norm.apply_(compact, size, kept)
    # As small as epsilon, so that a mistake in it shows.
    shape = [size if d == axis else 2 + d % 2 for d in range(dim)]
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 1e-3
    x.narrow(axis, kept, size - kept).zero_()
    try:
        with torch.no_grad(), Wide():
            expected, found = dense(x), compact(x.narrow(axis, 0, kept))
    except FAILURES:
        return False
    if not isinstance(expected, Tensor) or expected.shape != x.shape or not isinstance(found, Tensor):
        return False
    expected = expected.narrow(axis, 0, kept)
    return expected.shape == found.shape and bool(torch.allclose(expected, found, rtol=1e-9, atol=0))


def _copy(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    memo: dict[int, Any] = {id(module._parameters[name]): nn.Parameter(value) for name, value in values.items()}
    return duplicate(module, memo).eval()


def put_right_(small: nn.Module, dense: Mapping[str, Tensor], norms: Iterable[Norm]) -> list[tuple[str, float, float]]:
    """Compensate every norm whose axis became shorter than in `dense`; returns the attributes that changed."""
    changed: list[tuple[str, float, float]] = []
    now = dict(small.named_parameters(remove_duplicate=False))
    for norm in dict.fromkeys(norms):
        before, after = dense[norm.parameter].numel(), now[norm.parameter].numel()
        if before != after:
            changed += norm.apply_(small, before, after)
    return changed
