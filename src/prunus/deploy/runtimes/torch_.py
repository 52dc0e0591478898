"""PyTorch itself: eager, and compiled by its own compiler."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunus.core.errors import PrunusError
from prunus.deploy.runtimes.base import Runtime, Session, Subject, output_tensors
from prunus.graph.duplicate import duplicate
from prunus.graph.running import FAILURES, mapped
from prunus.measure.inputs import device_of


def own_copy(subject: Subject, dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model and its example in another type of floating point, the subject's left as they are."""
    model = duplicate(subject.model)
    args: Any = subject.args
    kwargs: Any = subject.kwargs
    if dtype != torch.float32:

        def cast(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() else t

        model, args = model.to(dtype), mapped(args, cast)
        kwargs = mapped(kwargs, cast)
    for module in model.modules():
        module.training = False  # flag by flag: some models merge weights in `train()`
    return model, tuple(args), dict(kwargs)


def session_of(model: nn.Module, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], notes: Any = ()) -> Session:
    """A session that calls a module; its first call, in which compilers work, is made here.

    Errors: `PrunusError` with the first line of what the call raised.
    """

    def run() -> Any:
        with torch.inference_mode():
            return call(*args, **kwargs)

    try:
        run()
    except FAILURES as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PrunusError(f"{type(error).__name__}: {first}") from error
    device = device_of(model, args or kwargs)
    return Session(run, output_tensors, held_bytes(model), lambda: None, device, tuple(notes))


def held_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, each shared tensor once; of tensors made of others, those of the others."""
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> None:
        if hasattr(tensor, "__tensor_flatten__"):
            for name in tensor.__tensor_flatten__()[0]:
                count(getattr(tensor, name))
        else:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    for tensor in (*model.parameters(), *model.buffers()):
        count(tensor)
    return sum(seen.values())


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Eager(Runtime):
    """PyTorch as it is, operation by operation."""

    name: ClassVar[str] = "eager"

    def open(self, subject: Subject, threads: int) -> Session:
        """A copy of the model, in the precision that was asked for."""
        model, args, kwargs = own_copy(subject, _DTYPES[self.precision])
        return session_of(model, model, args, kwargs)


@dataclass(frozen=True)
class Compiled(Runtime):
    """`torch.compile` with weights as constants (`freezing`): normalizations are folded into what they follow."""

    name: ClassVar[str] = "compile"

    def missing(self) -> str:
        """Without a compiler for C++ there is nothing that it could generate code for, on a CPU."""
        if not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            return "torch.compile needs a C++ compiler: install g++ or clang++"
        return ""

    def open(self, subject: Subject, threads: int) -> Session:
        """Compiles for the example's shapes; seconds to a minute."""
        model, args, kwargs = own_copy(subject, _DTYPES[self.precision])
        compiled = torch.compile(model, dynamic=False, options={"freezing": True})
        made = session_of(model, compiled, args, kwargs)
        return Session(made.run, made.tensors, made.bytes, torch.compiler.reset, made.device)


RUNTIMES = (Eager(), Eager("bfloat16"), Compiled(), Compiled("bfloat16"))
