"""The oracle: the compact model computes what the masked model computes, to float64 round-off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.core.errors import DataError, StructureError, VerificationError
from prunus.core.groups import Group
from prunus.core.task import Example
from prunus.graph.duplicate import duplicate
from prunus.graph.flow import tensors_in
from prunus.graph.running import call, computed, mapped, quiet, unwrap
from prunus.graph.statistics import kept_statistics
from prunus.graph.wide import Wide


def masked_(model: nn.Module, groups: Sequence[Group], masks: Mapping[str, Bool[Tensor, "..."]]) -> nn.Module:
    """Zero what `compact` would remove: every parameter's slices of the removed units, in place. Buffers stay."""
    inner = unwrap(model)
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for group in groups:
            if group.name not in masks:
                continue
            keep = masks[group.name]
            for member in group.with_role("out", "in", "scale", "shift", "bias"):
                parameter = parameters[member.param]
                spread = group.spread(member, keep.to(parameter.device), parameter.shape)
                parameter.masked_fill_(~spread, 0)
    return model


class Reference(nn.Module):
    """A masked model that is run with the removed units set aside, where zeros alone do not say what their removal is.

    Attributes:
        model: the masked model.
        asides: each makes a context that holds while the model runs.
    """

    def __init__(self, model: nn.Module, asides: Sequence[Callable[[], AbstractContextManager[None]]]) -> None:
        super().__init__()
        self.model = model
        self.asides = tuple(asides)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output."""
        with ExitStack() as stack:
            for aside in self.asides:
                stack.enter_context(aside())
            return self.model(*args, **kwargs)


def reference(model: nn.Module, groups: Sequence[Group], masks: Mapping[str, Bool[Tensor, "..."]]) -> nn.Module:
    """What the compact model is compared with: the masked model itself, but for groups of which zeros are not enough.

    Normalizations that are to forget the removed positions (`CoupledGroup.statistics`) are run so; any other group may
    have a method `aside(model, keep)`, whose context holds while the masked model runs.
    """
    inner = unwrap(model)
    asides: list[Callable[[], AbstractContextManager[None]]] = []
    keeps: dict[str, Tensor] = {}
    shapes = {n: p.shape for n, p in inner.named_parameters(remove_duplicate=False)}
    for group in groups:
        if group.name not in masks:
            continue
        keep = masks[group.name].cpu()
        own = set(getattr(group, "statistics", ()))
        for member in group.members:
            if member.param in own:
                kept = group.axis_keep(member, keep, shapes[member.param][0])
                keeps[member.param] = keeps.get(member.param, kept) & kept
        aside = getattr(group, "aside", None)
        if aside is not None:
            asides.append(partial(aside, inner, keep))
    if keeps:
        asides.append(partial(kept_statistics, inner, keeps))
    return Reference(model, asides) if asides else model


def verify(masked: nn.Module, small: nn.Module, example: Example | Tensor, tol: float = 1e-9) -> float:
    """The largest relative difference between the outputs of two models, on the example and on random inputs.

    Both are copied to float64 and run in evaluation mode; relative means divided by the largest value of the
    reference's output tensor. A model that cannot run in float64 (kernels made for one type) is compared in its
    own type, to 1e-4. Cost: two float64 copies and four runs.

    Raises:
        DataError: the masked model cannot run the example.
        StructureError: the small model does not run; the message names the module.
        VerificationError: the outputs differ by more than `tol`, in shape, or are not a number.
    """
    return prove(lambda wide: tuple(precise(unwrap(m), wide) for m in (masked, small)), example, tol)


def prove(make: Callable[[bool], tuple[nn.Module, ...]], example: Example | Tensor, tol: float = 1e-9) -> float:
    """`verify` for two models that `make` provides: in float64 if its argument is true, else in their own type."""
    models = make(True)
    wide = True
    try:
        expected = outputs(models[0], typed(example, wide))
    except DataError:
        models, wide = make(False), False
        expected = outputs(models[0], typed(example, wide))
        tol = max(tol, NARROW)
    worst = _within(differ(expected, models[1], typed(example, wide)), tol)
    noise = noise_like(example, 0, wide)
    try:
        expected = outputs(models[0], noise)
    except DataError:  # inputs that must be positive, sorted or otherwise special
        return worst
    if any(bool(t.isnan().any()) for t in expected):
        return worst
    return max(worst, _within(differ(expected, models[1], noise), tol))


NARROW = 1e-4
"""The tolerance where a model cannot run in float64."""


def _within(error: float, tol: float) -> float:
    if error <= tol:
        return error
    raise VerificationError(
        f"the compact model's output differs from the masked model's by {error:.2e} of its largest value "
        f"(allowed: {tol:.0e})"
    )


def differ(expected: list[Tensor], small: nn.Module, inputs: Example | Tensor) -> float:
    """The largest relative difference of a model's outputs from the expected ones."""
    path: list[str] = []
    try:
        found = outputs(small, inputs, path)
    except DataError as error:
        where = path[-1] if path and path[-1] else "the model"
        raise StructureError(f"the compact model does not run: {error.__cause__} (in {where})") from error
    return largest_difference(expected, found)


def largest_difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference relative to the largest value of each tensor; raises where shapes or types differ."""
    if [(t.shape, t.dtype) for t in expected] != [(t.shape, t.dtype) for t in found]:
        shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in found]
        raise VerificationError(f"the compact model's outputs have shapes {shapes[1]}, the masked model's {shapes[0]}")
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.numel() == 0:
            continue
        if not (a.is_floating_point() or a.is_complex()):
            worst = max(worst, float((a != b).any()))
            continue
        if bool(b.isnan().any()) and not bool(a.isnan().any()):
            return float("inf")
        if not bool(a.isfinite().all()):
            # Minus infinity is an ordinary value where scores are masked out; NaN can be compared with nothing.
            if bool(a.isnan().any()):
                raise VerificationError("the masked model's output is not a number, so nothing can be compared with it")
            if not torch.equal(torch.where(a.isinf(), a, 0), torch.where(b.isinf(), b, 0)):
                return float("inf")
            a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
        scale = float(a.abs().max())
        worst = max(worst, float((a - b).abs().max()) / (scale if scale > 0 else 1.0))
    return worst


def outputs(model: nn.Module, inputs: Example | Tensor, path: list[str] | None = None) -> list[Tensor]:
    """Every tensor the model returns, with a fixed seed for layers that draw numbers."""
    wide = any(p.dtype == torch.float64 for p in model.parameters())
    with quiet(model), double_default() if wide else nullcontext(), Wide() if wide else nullcontext():
        torch.manual_seed(0)
        return [t.detach() for t in tensors_in(call(model, inputs, path))]


def precise(model: nn.Module, wide: bool = True) -> nn.Module:
    """A float64 copy, plain tensor attributes included; an ordinary copy if not `wide`."""
    memo: dict[int, Any] = computed(model)
    for tensor in (*model.parameters(), *model.buffers()):
        # Converted here, so that the copy never holds the weights twice.
        if wide and tensor.is_floating_point() and tensor.dtype != torch.float64:
            double = tensor.detach().double()
            memo[id(tensor)] = (
                nn.Parameter(double, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else double
            )
    try:
        twin = duplicate(model, memo)
    except (RuntimeError, TypeError) as error:
        raise StructureError(f"the model cannot be copied ({error}); the proof works on a deep copy") from error
    for module in twin.modules() if wide else ():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(module)[name] = value.double()
        if isinstance(vars(module).get("dtype"), torch.dtype):
            vars(module)["dtype"] = torch.float64
    return twin


def typed(example: Example | Tensor, wide: bool) -> Example | Tensor:
    """The example, with its floating tensors in float64 if `wide`."""
    return mapped(example, lambda t: t.double() if wide and t.is_floating_point() else t)


def noise_like(example: Example | Tensor, seed: int, wide: bool = True) -> Example | Tensor:
    """Standard normal noise in place of the floating tensors of the example, in float64 if `wide`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return drawn.to(tensor.device, torch.float64 if wide else tensor.dtype)

    return mapped(example, draw)


@contextmanager
def double_default() -> Iterator[None]:
    """float64 for what forwards create themselves; the default comes back."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def randomized_(model: nn.Module, seed: int) -> Any:
    """Draw anew every tensor whose entries are all equal, so that nothing hides behind a zero or a tiny scale.

    Fresh networks hold such tensors (zero biases, residual branches that end in a zero scale, unit variances), and what
    a zero multiplies cannot be compared.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            if bool((tensor == tensor.flatten()[0]).all()):
                drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_((0.5 + drawn).to(tensor.device))
    return model
