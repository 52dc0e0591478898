"""How a model is called when it is deployed, and what `torch.export` makes of it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import StructureError
from prunus.core.task import Example, as_call
from prunus.graph.running import tensors_in


def subject_call(model: nn.Module, example: Example | Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as `(args, kwargs)`; a transformers model runs without its cache, unless the example says so."""
    args, kwargs = as_call(example)
    parameters = inspect.signature(model.forward)
    if "use_cache" in parameters.parameters and "use_cache" not in kwargs:
        args, kwargs = (), {**parameters.bind_partial(*args).arguments, **kwargs, "use_cache": False}
    return args, kwargs


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Inside, the model returns its tensors in tuples, lists and dictionaries, and nothing else; see `plain`.

    A file then needs no class of the library that the model came from.
    """
    handle = model.register_forward_hook(lambda module, args, out: plain(out))
    try:
        yield
    finally:
        handle.remove()


def plain(value: Any) -> Any:
    """A value's tensors in the order of `tensors_in`, in tuples, lists and dictionaries.

    Named tuples become tuples, other objects with fields dictionaries; what holds no tensor is left out.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        kept = [plain(item) for item in value if _holds(item)]
        return kept if isinstance(value, list) else tuple(kept)
    if not isinstance(value, Mapping):
        value = {name: getattr(value, name, None) for name in getattr(value, "__dataclass_fields__", ())}
    return {name: plain(item) for name, item in value.items() if _holds(item)}


def _holds(value: Any) -> bool:
    return next(tensors_in(value), None) is not None


def exported_program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """What `torch.export` makes of a model, outputs as in `plain`. Errors: `StructureError` where it cannot follow."""
    with warnings.catch_warnings(), plain_outputs(model):
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, args, kwargs)
        except Exception as error:  # of classes of its own, and of whatever the model's code raises
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            kind = type(model).__name__
            raise StructureError(f"torch.export cannot follow this {kind}: {first}") from error
