"""Run a model on an example and leave no trace of it: training flags, random state, hooks and defaults come back."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError
from prunus.core.task import Example, as_call, describe

FAILURES = (
    RuntimeError,
    ValueError,
    IndexError,
    TypeError,
    AttributeError,
    KeyError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
)
"""What a forward pass raises when it is given something that it cannot work with."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel`, `DataParallel` or `torch.compile`."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def takes_hooks(module: nn.Module) -> bool:
    """Whether hooks can be put on a module: not on those of TorchScript."""
    return not isinstance(module, torch.jit.ScriptModule)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and without fused attention; everything is restored, whatever happens.

    Attributes that the forward sets or fills (caches of tables, counters, hooks with the flag that says that they are
    there) come back too, and modules in whose place it puts others: what a dense run has cached would be stale in a
    smaller copy. Functions and modules inside the model that are compiled run as they were written.
    """
    training = [(m, m.training) for m in model.modules()]
    fields = [(vars(m), _snapshot(vars(m))) for m, _ in training]
    devices = sorted({t.device.index or 0 for t in model.parameters() if t.device.type == "cuda"})
    state = random.getstate()
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), torch.autocast("cpu", enabled=False), eager():
            torch.backends.mha.set_fastpath_enabled(False)
            for module, _ in training:
                module.training = False
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(state)
        for names, before in fields:
            _restore_(names, before)
        for module, was in training:
            module.training = was


def eager() -> AbstractContextManager[Any]:
    """Nothing is compiled meanwhile: every copy of other widths would be, and what watches a run sees more without."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


# The registries of `nn.Module`, which forwards do not change; of modules they may replace some.
_REGISTRIES = frozenset(("_parameters", "_buffers", "_modules", "training"))


def _snapshot(names: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every attribute, with a copy of its entries if it is a plain container."""
    kept = {k: v for k, v in names.items() if k not in _REGISTRIES or k == "_modules"}
    return {k: (v, v.copy() if type(v) in (dict, OrderedDict, list) else None) for k, v in kept.items()}


def _restore_(names: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    modules, were = before.pop("_modules", ({}, None))
    for name, module in (were or {}).items():  # what is built in a first run stays
        if module is not None and modules.get(name) not in (None, module):
            modules[name] = module
    for name in [n for n in names if n not in before and n not in _REGISTRIES]:
        del names[name]
    for name, (value, entries) in before.items():
        if type(value) in (dict, OrderedDict) and value.keys() != entries.keys():
            value.clear()
            value.update(entries)
        elif type(value) is list and len(value) != len(entries):
            value[:] = entries
        if names.get(name) is not value:
            names[name] = value


@contextmanager
def watched(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep in `path` the names of the modules that are running; after an exception it still says where that was."""
    names = {id(m): n for n, m in model.named_modules()}

    def enter(module: nn.Module, *_: Any) -> None:
        path.append(names.get(id(module), path[-1] if path else ""))

    def leave(module: nn.Module, *_: Any) -> None:
        # A model that catches an exception of a submodule leaves entries behind, so pop down to this module.
        name = names.get(id(module))
        while path and path.pop() != name and name is not None:
            pass

    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def call(model: nn.Module, example: Example | Tensor, path: list[str] | None = None) -> Any:
    """The model's output; what goes wrong is a `DataError` that names the module and the shapes."""
    args, kwargs = as_call(example)
    path = [] if path is None else path
    with watched(model, path):
        try:
            return model(*args, **kwargs)
        except FAILURES as error:
            where = path[-1] if path and path[-1] else type(model).__name__
            raise DataError(
                f"the model cannot run the example of {describe(kwargs or args)}: "
                f"{type(error).__name__} in {where}: {error}. Pass one input of the model as `example`, "
                "a tuple of positional or a dict of keyword arguments"
            ) from error


def mapped(example: Example | Tensor, change: Any) -> Example | Tensor:
    """The example with every tensor in it changed."""
    if isinstance(example, Tensor):
        return change(example)  # type: ignore[no-any-return]
    if isinstance(example, Mapping):
        return {k: _mapped(v, change) for k, v in example.items()}
    if isinstance(example, tuple | list):
        return tuple(_mapped(v, change) for v in example)
    raise SpecError(
        f"an example is a tensor, a tuple of inputs or a dict of keyword inputs, not {type(example).__name__}"
    )


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: _mapped(v, change) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(_mapped(v, change) for v in value)
    return value


def computed(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy`: tensors that a run has left (older weight norm, kept features) copy as values."""
    fields = (value for module in model.modules() for name, value in vars(module).items() if name not in _REGISTRIES)
    return {id(t): t.detach() for value in fields for t in _kept(value) if not t.is_leaf}


def _kept(value: Any) -> Iterator[Tensor]:
    """The tensors in an attribute; not those inside objects."""
    if isinstance(value, Tensor):
        yield value
    elif type(value) in (dict, OrderedDict, list, tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _kept(item)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested tuples, lists, mappings and objects with fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name, None))


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory in the same shape."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return (id(tensor),)
    pointer = tensor.untyped_storage().data_ptr()
    if pointer == 0:
        return (id(tensor),)
    return (str(tensor.device), pointer, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def one_sample(example: Example | Tensor) -> tuple[Example | Tensor, int]:
    """The first sample of a batch and the batch size; the example itself and 1 where no batch is to be seen."""
    sizes: set[int] = set()

    def look(tensor: Tensor) -> Tensor:
        sizes.add(tensor.shape[0] if tensor.dim() > 0 else 0)
        return tensor

    mapped(example, look)
    if len(sizes) != 1 or (size := sizes.pop()) <= 1:
        return example, 1
    return mapped(example, lambda t: t[:1].clone()), size
