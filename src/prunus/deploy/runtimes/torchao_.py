"""PyTorch with the linear layers in int8."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch

from prunus.core.errors import PrunusError, SpecError
from prunus.deploy.runtimes.base import Precision, Runtime, Session, Subject
from prunus.deploy.runtimes.torch_ import Compiled, own_copy, session_of


@dataclass(frozen=True)
class TorchAO(Runtime):
    """Linear layers that multiply in int8 (torchao), compiled; the rest in float32."""

    precision: Precision = "int8"
    name: ClassVar[str] = "torchao"
    library: ClassVar[str] = "torchao"
    extra: ClassVar[str] = "quant"

    def missing(self) -> str:
        """It needs what `torch.compile` needs."""
        return super().missing() or Compiled().missing()

    def open(self, subject: Subject, threads: int) -> Session:
        """Quantized, then compiled."""
        from prunus.deploy.quantize import quantize_

        model, args, kwargs = own_copy(subject, torch.float32)
        try:
            quantize_(model, "dynamic")
        except SpecError as error:
            raise PrunusError(str(error)) from error
        # Freezing copies weights in a way that these tensors do not bear.
        with warnings.catch_warnings():
            # That the compiler's cache does not know these tensors is nothing to act on.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._functorch")
            made = session_of(model, torch.compile(model, dynamic=False), args, kwargs)
        return Session(made.run, made.tensors, made.bytes, torch.compiler.reset, made.device)


RUNTIMES = (TorchAO(),)
