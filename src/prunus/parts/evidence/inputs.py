"""Inputs that are no data: made from the shapes of an example alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Sources

Call = tuple[tuple[Any, ...], dict[str, Any]]


def example_call(sources: Sources, what: str) -> Call:
    """`(args, kwargs)` of the example, or an error that names what needs it."""
    call = sources.task.example_inputs()
    if call is None:
        raise SpecError(f"{what} needs the shape of an input: pass Task(example=...)")
    return call


def gaussian_call(call: Call, samples: int, generator: torch.Generator, like: Tensor) -> Call:
    """The call with `samples` standard normal inputs in place of every floating one.

    Numbers are drawn on the CPU in float32, then take the type and place of `like`. Integer inputs (token ids) stay as
    the example has them, its samples repeated.
    """

    def made(t: Tensor) -> Tensor:
        if t.is_floating_point():
            drawn = torch.randn((samples, *t.shape[1:]), generator=generator)
            return drawn.to(device=like.device, dtype=like.dtype)
        return t[torch.arange(samples) % len(t)].to(like.device) if t.ndim else t.to(like.device)

    args, kwargs = call
    return tuple(each_tensor(a, made) for a in args), {k: each_tensor(v, made) for k, v in kwargs.items()}


def each_tensor(inputs: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """Nested inputs with every tensor replaced by what `make` makes of it."""
    if isinstance(inputs, Tensor):
        return make(inputs)
    if isinstance(inputs, Mapping):
        return {k: each_tensor(v, make) for k, v in inputs.items()}
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return type(inputs)(each_tensor(v, make) for v in inputs)  # type: ignore[call-arg]
    return inputs


def floating_outputs(output: Any) -> list[Tensor]:
    """The output tensor: itself, the `logits` of a record, else every floating tensor inside."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return [logits]
    values = list(output.values()) if isinstance(output, Mapping) else output
    return [t for v in values for t in floating_outputs(v)] if isinstance(values, list | tuple) else []
