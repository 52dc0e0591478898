"""What every measurement needs first: the example as arguments, and a model that is left exactly as it was found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from prunus.core.errors import DataError, SpecError

Example = Tensor | Sequence[Any] | Mapping[str, Any]

# What a model raises when its input does not fit, or when it asks a meta tensor for a value.
RUN_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)

HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as `(args, kwargs)` of `model(...)`: a tensor or sequence is positional, a mapping is by keyword."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, Sequence) and not isinstance(example, str | bytes):
        return tuple(example), {}
    raise SpecError(
        f"example is a {type(example).__name__}: give a tensor, a tuple of inputs, or a dict of inputs by name"
    )


def tensors(example: Any) -> list[Tensor]:
    """Every tensor of a nested example, in order."""
    args, kwargs = arguments(example)
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def batch_size(example: Example) -> int | None:
    """The first dimension, where all tensors of the example that have one agree on it; else None."""
    sizes = {t.shape[0] for t in tensors(example) if t.dim() > 0}
    return sizes.pop() if len(sizes) == 1 else None


def described(example: Example) -> str:
    """Shapes and types of the example, for error messages."""
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors(example)) or "no tensor"


def moved(example: Example, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`arguments(example)` with every tensor on `device` (the very same tensor where it is there already)."""

    def move(leaf: Any) -> Any:
        return leaf.detach().to(device) if isinstance(leaf, Tensor) and leaf.device != device else leaf

    return cast("tuple[tuple[Any, ...], dict[str, Any]]", tree_map(move, arguments(example)))


def uncompiled(model: nn.Module) -> nn.Module:
    """The user's own module behind `torch.compile`, which is what has parameters with the user's names."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def check_materialized(model: nn.Module) -> None:
    """Raise `SpecError` naming the lazy parameters: they have no shape before the first forward pass."""
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise SpecError(f"parameter {lazy[0]!r} has no shape yet (lazy module): run the model once before measuring it")


def device_of(model: nn.Module, example: Example) -> torch.device:
    """Where the model runs: the device of its first parameter or buffer, of the example if it has neither."""
    for tensor in (*model.parameters(), *model.buffers(), *tensors(example)):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: nn.Module, example: Example) -> torch.dtype:
    """The type the model computes in: that of its first floating-point parameter, else of the example."""
    for tensor in (*model.parameters(), *tensors(example)):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


def run(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`model(*args, **kwargs)`, with whatever the model raises turned into a `DataError` that shows the input."""
    try:
        return model(*args, **kwargs)
    except RUN_ERRORS as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{type(model).__name__} does not run on the example ({described((args, kwargs))}): {first}. "
            "Give an example with the shapes and types of a real batch"
        ) from error


@contextmanager
def as_found(model: nn.Module, device: torch.device, *, hooks: bool = True, inference: bool = True) -> Iterator[None]:
    """Evaluation mode without gradients inside; training flags, buffers, hooks and RNG as they were afterwards.

    Flags are set one by one and `train()` is not called: some models merge or fuse weights there.
    With `hooks=False` the user's forward hooks do not run inside.
    """
    modules = list(model.modules())
    # Shallow copies: a flag, a hook table, a cached tensor that appears inside is gone again afterwards.
    found = [(m, dict(m.__dict__), dict(m._buffers)) for m in modules]
    values = {id(b): (b, b.detach().clone()) for b in model.buffers() if not b.is_meta}
    with ExitStack() as stack:
        cuda = [device.index or 0] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(torch.inference_mode() if inference else torch.no_grad())
        try:
            for module in modules:
                module.training = False
                if not hooks:
                    tables = [name for name in HOOK_TABLES if name in module.__dict__]
                    module.__dict__.update({name: OrderedDict() for name in tables})
            yield
        finally:
            for module, attributes, held in found:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                if isinstance(module._buffers, dict):  # those of a TorchScript module are no dictionary, and stay
                    module._buffers.clear()
                    module._buffers.update(held)
            for buffer, value in values.values():
                if not torch.equal(buffer, value):
                    with torch.no_grad():
                        buffer.copy_(value)
