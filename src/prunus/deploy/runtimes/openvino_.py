"""OpenVINO on the processor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from prunus.core.errors import PrunusError
from prunus.deploy.denormals import arithmetic_kept
from prunus.deploy.runtimes.base import Pattern, Precision, Runtime, Session, Subject
from prunus.measure.machine import machine

SPARSE_RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
"""The plugin's property: the share of zeros from which on int8 weights are packed; 1 packs none."""


@dataclass(frozen=True)
class OpenVINO(Runtime):
    """OpenVINO's processor plugin, in the precision that is named (its own default may be a lower one)."""

    name: ClassVar[str] = "openvino"
    library: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"

    def missing(self) -> str:
        """Lower precisions need a processor that computes in them."""
        if why := super().missing():
            return why
        wanted = {"float32": "FP32", "bfloat16": "BF16", "int8": "INT8"}[self.precision]
        able = importlib.import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if wanted not in able:
            return f"OpenVINO computes nothing in {wanted} on this processor (only {', '.join(able)})"
        return ""

    def ready(self, subject: Subject) -> None:
        """Writes the ONNX file."""
        super().ready(subject)
        self._file(subject)

    def open(self, subject: Subject, threads: int) -> Session:
        """From the model's ONNX file; int8 from one whose ranges were read from examples beforehand."""
        hint = "bf16" if self.precision == "bfloat16" else "f32"
        return session_of(self._file(subject), subject.named(), threads, {"INFERENCE_PRECISION_HINT": hint})

    def _file(self, subject: Subject) -> Path:
        from prunus.deploy.quantize import quantized_onnx

        return quantized_onnx(subject, static=True) if self.precision == "int8" else subject.onnx.path


@dataclass(frozen=True)
class SparseOpenVINO(OpenVINO):
    """Int8 linear layers whose zeros are left out in memory and put back on the way to the processor's tiles.

    Attributes:
        least: the share of zeros from which on a layer is packed so.
    """

    precision: Precision = "int8"
    least: float = 0.7
    skips: ClassVar[frozenset[Pattern]] = frozenset({"unstructured"})

    @property
    def title(self) -> str:
        """`openvino-int8-sparse`."""
        return f"{super().title}-sparse"

    def missing(self) -> str:
        """OpenVINO takes this setting everywhere, and follows it only where the processor has AMX for int8."""
        if why := super().missing():
            return why
        if not machine().features.get("AMX INT8", False):
            return "OpenVINO packs the zeros of int8 weights only for processors with AMX, and this one has none"
        return ""

    def open(self, subject: Subject, threads: int) -> Session:
        """From the file with fixed ranges; layers whose sizes are no multiples of 64 stay as they are."""
        return session_of(self._file(subject), subject.named(), threads, {SPARSE_RATE: self.least})


def session_of(file: Path, feeds: dict[str, Any], threads: int, more: Mapping[str, Any] | None = None) -> Session:
    """A session on an ONNX file or on OpenVINO's own. Errors: `PrunusError` with what the runtime says.

    more: settings of the plugin beside those that every session has, or in their place.
    """
    openvino = importlib.import_module("openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "CPU_DENORMALS_OPTIMIZATION": True,
        **(more or {}),
    }

    def run() -> Any:
        # The plugin leaves the calling thread with denormal numbers taken as zero: the next runtime would profit.
        with arithmetic_kept():
            return request.infer(by_port, share_inputs=True, share_outputs=True)

    try:
        with arithmetic_kept():
            compiled = openvino.Core().compile_model(str(file), "CPU", settings)
        request = compiled.create_infer_request()
        by_port = [feeds[port.any_name] for port in compiled.inputs]
        run()
    except (RuntimeError, KeyError) as error:
        raise PrunusError(f"OpenVINO cannot run it: {str(error).strip().splitlines()[0]}") from error
    size = sum(f.stat().st_size for f in file.parent.glob(f"{file.stem}*") if f.is_file())
    return Session(
        run=run,
        # Outputs lie in the request's own memory, which the next run writes over.
        tensors=lambda out: [torch.as_tensor(v).clone() for v in out.values()],
        bytes=size,
        close=lambda: None,
    )


RUNTIMES = (OpenVINO(), OpenVINO("bfloat16"), OpenVINO("int8"), SparseOpenVINO())
