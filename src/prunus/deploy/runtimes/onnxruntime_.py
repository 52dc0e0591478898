"""ONNX Runtime on the processor."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from prunus.core.errors import PrunusError
from prunus.deploy.runtimes.base import Runtime, Session, Subject


@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """ONNX Runtime's own kernels, denormal numbers taken as zero.

    Attributes:
        ranges: with int8, whether ranges of activations are read from examples beforehand (`static`) or from every
            input as it comes (`dynamic`, linear layers only).
    """

    ranges: str = ""
    name: ClassVar[str] = "onnxruntime"
    library: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"

    @property
    def title(self) -> str:
        """With the way in which ranges are found."""
        return f"{super().title}-{self.ranges}" if self.ranges else super().title

    def ready(self, subject: Subject) -> None:
        """Writes the ONNX file."""
        super().ready(subject)
        self._file(subject)

    def open(self, subject: Subject, threads: int) -> Session:
        """From the model's ONNX file, or one with int8 arithmetic made of it."""
        return session_of(self._file(subject), subject.named(), threads)

    def _file(self, subject: Subject) -> Path:
        from prunus.deploy.quantize import quantized_onnx

        if self.precision == "int8":
            return quantized_onnx(subject, static=self.ranges == "static")
        return subject.onnx.path


def session_of(file: Path, feeds: dict[str, Any], threads: int) -> Session:
    """A session on an ONNX file. Errors: `PrunusError` with what the runtime says."""
    runtime = importlib.import_module("onnxruntime")
    raised = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # Threads that wait in a loop for the next run would take the processor from what is timed in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        session.run(None, feeds)
    except (raised.NotImplemented, raised.InvalidGraph, raised.Fail, raised.RuntimeException) as error:
        raise PrunusError(f"ONNX Runtime cannot run it: {str(error).strip().splitlines()[0]}") from error
    except raised.InvalidArgument as error:
        raise PrunusError(f"ONNX Runtime refuses the example: {str(error).strip().splitlines()[0]}") from error
    size = sum(f.stat().st_size for f in file.parent.glob(f"{file.name}*"))
    return Session(
        run=lambda: session.run(None, feeds),
        tensors=lambda out: [torch.as_tensor(v) for v in out],
        bytes=size,
        close=lambda: None,
    )


RUNTIMES = (OnnxRuntime(), OnnxRuntime("int8", "dynamic"), OnnxRuntime("int8", "static"))
