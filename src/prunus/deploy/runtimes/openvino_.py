"""OpenVINO on the processor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunus.core.errors import MissingExtraError, PrunusError, StructureError, require
from prunus.deploy.calling import exported_program
from prunus.deploy.denormals import arithmetic_kept
from prunus.deploy.runtimes.base import Pattern, Precision, Runtime, Session, Subject
from prunus.graph.running import tensors_in
from prunus.measure.machine import machine

Feeds = dict[str, Any] | list[Any]

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
        """Writes the ONNX file, or OpenVINO's own where that does not go."""
        super().ready(subject)
        if self.precision == "int8":
            self._quantized(subject)
        else:
            written(subject)

    def open(self, subject: Subject, threads: int) -> Session:
        """From the file that `ready` wrote; int8 from one whose ranges were read from examples beforehand."""
        if self.precision == "int8":
            return session_of(self._quantized(subject), subject.named(), threads)
        hint = "bf16" if self.precision == "bfloat16" else "f32"
        file, feeds = written(subject)
        return session_of(file, feeds, threads, {"INFERENCE_PRECISION_HINT": hint})

    def _quantized(self, subject: Subject) -> Path:
        from prunus.deploy.quantize import quantized_onnx

        return quantized_onnx(subject, static=True)


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
        return session_of(self._quantized(subject), subject.named(), threads, {SPARSE_RATE: self.least})


def written(subject: Subject) -> tuple[Path, Feeds]:
    """A file that OpenVINO can run, and the example for it: by way of ONNX, or where that fails from `torch.export`.

    Cost: the ONNX file, read once; where that fails, a second translation. Errors: those of the first way if both fail.
    """
    require("openvino", extra="openvino", why="it runs its own files")
    own = subject.folder / "openvino" / "model.xml"
    if not own.exists():
        try:
            feeds = subject.named()
            session_of(subject.onnx.path, feeds, 1)
            return subject.onnx.path, feeds
        except MissingExtraError:
            raise
        except PrunusError as error:
            try:
                _translate(subject, own)
                session_of(own, _tensors(subject), 1)
            except PrunusError:
                own.unlink(missing_ok=True)
                raise error from None
    return own, _tensors(subject)


def _translate(subject: Subject, file: Path) -> None:
    """Write OpenVINO's files of what `torch.export` makes of the model, in the example's shapes."""
    openvino = importlib.import_module("openvino")
    program = exported_program(subject.model, subject.args, subject.kwargs)
    shapes = [list(t.shape) for t in tensors_in((subject.args, subject.kwargs))]
    try:
        model = openvino.convert_model(program)
        if len(model.inputs) != len(shapes):
            raise StructureError(f"OpenVINO makes {len(model.inputs)} inputs of the example's {len(shapes)} tensors")
        model.reshape({port: openvino.PartialShape(s) for port, s in zip(model.inputs, shapes, strict=True)})
        file.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, str(file), compress_to_fp16=False)
    except PrunusError:
        raise
    except Exception as error:  # of classes of its own
        raise StructureError(f"OpenVINO cannot translate it: {_telling(error)}") from error


def _tensors(subject: Subject) -> list[Any]:
    """The example's tensors in order, as OpenVINO takes them."""
    openvino = importlib.import_module("openvino")

    def one(t: Tensor) -> Any:
        t = t.detach().cpu().contiguous()
        if t.dtype != torch.bfloat16:
            return openvino.Tensor(t.numpy())
        return openvino.Tensor(t.view(torch.int16).numpy(), openvino.Shape(list(t.shape)), openvino.Type.bf16)

    return [one(t) for t in tensors_in((subject.args, subject.kwargs))]


def _telling(error: BaseException) -> str:
    """The first line of an error of OpenVINO that says more than where in its source it was raised."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    said = [x for x in lines if not x.startswith(("Exception from ", "Check ")) and not x.endswith(":")]
    return (said or lines or [type(error).__name__])[0][:300]


def session_of(file: Path, feeds: Feeds, threads: int, more: Mapping[str, Any] | None = None) -> Session:
    """A session on an ONNX file or on OpenVINO's own. Errors: `PrunusError` with what the runtime says.

    feeds: what goes in, by name or in order.
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
        by_port = [_named(feeds, port) for port in compiled.inputs] if isinstance(feeds, dict) else feeds
        run()
    except (RuntimeError, KeyError) as error:
        raise PrunusError(f"OpenVINO cannot run it: {_telling(error)}") from error
    size = sum(f.stat().st_size for f in file.parent.glob(f"{file.stem}*") if f.is_file())
    return Session(
        run=run,
        # Outputs lie in the request's own memory, which the next run writes over.
        tensors=lambda out: [_read(port, v) for port, v in zip(compiled.outputs, out.values(), strict=True)],
        bytes=size,
        close=lambda: None,
    )


def _named(feeds: Mapping[str, Any], port: Any) -> Any:
    """What goes into an input, which may be known by further names: those of what only converts it."""
    return feeds[next((name for name in port.names if name in feeds), port.any_name)]


def _read(port: Any, value: Any) -> Tensor:
    """An output as a tensor of its own; numbers of bfloat16 come as something else of 16 bits."""
    if port.element_type.get_type_name() != "bf16":
        return torch.as_tensor(value).clone()
    return torch.from_numpy(value.view("int16").copy()).view(torch.bfloat16)


RUNTIMES = (OpenVINO(), OpenVINO("bfloat16"), OpenVINO("int8"), SparseOpenVINO())
