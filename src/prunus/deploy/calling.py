"""How a model is called when it is deployed, and what `torch.export` makes of it."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import StructureError
from prunus.core.task import Example, as_call
from prunus.graph.running import FAILURES


def subject_call(model: nn.Module, example: Example | Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as `(args, kwargs)`; a transformers model runs without its cache, unless the example says so."""
    args, kwargs = as_call(example)
    parameters = inspect.signature(model.forward)
    if "use_cache" in parameters.parameters and "use_cache" not in kwargs:
        args, kwargs = (), {**parameters.bind_partial(*args).arguments, **kwargs, "use_cache": False}
    return args, kwargs


def exported_program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """What `torch.export` makes of a model. Errors: `StructureError` where it cannot follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, args, kwargs)
        except FAILURES as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            kind = type(model).__name__
            raise StructureError(f"torch.export cannot follow this {kind}: {first}") from error
