"""One layer of a given shape, ready to be run again and again: in PyTorch eager, ONNX Runtime or OpenVINO."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.core.errors import SpecError, UnknownNameError, require
from prunus.measure.layers import LayerShape

Run = Callable[[], object]


class Runtime(ABC):
    """What runs a layer. `prepared` gives one function per shape, all alive at once."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the library."""

    @abstractmethod
    def prepared(self, shapes: Iterable[LayerShape], threads: int, times: int = 1) -> list[Run]:
        """times: how many of the layer in a row; more than one only where its outputs are what it takes.

        Errors: `SpecError` for a type that it does not compute in, `MissingExtraError` where it is not installed.
        """


@dataclass(frozen=True)
class Eager(Runtime):
    """PyTorch as a model calls it, on `device`. All shapes share one piece of memory for each operand."""

    device: str = "cpu"

    @property
    def version(self) -> str:
        return str(torch.__version__)

    def prepared(self, shapes: Iterable[LayerShape], threads: int, times: int = 1) -> list[Run]:
        shapes = list(shapes)
        dtype = getattr(torch, shapes[0].dtype)
        most = [max(prod(f(s)) for s in shapes) for f in (_input, lambda s: s.weight, lambda s: (s.outputs,))]
        generator = torch.Generator().manual_seed(0)
        x, w, b = (torch.rand(n, generator=generator).to(self.device, dtype) for n in most)

        def cut(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
            return memory[: prod(shape)].view(shape)

        def one(s: LayerShape) -> Run:
            run = _called(s, cut(x, _input(s)), cut(w, s.weight), cut(b, (s.outputs,)) if s.bias else None)
            return run if times == 1 else lambda: [run() for _ in range(times)]

        return [one(s) for s in shapes]


def _called(shape: LayerShape, x: Tensor, w: Tensor, b: Tensor | None) -> Run:
    if not shape.conv:
        return lambda: F.linear(x, w, b)
    stride, padding, dilation = shape.stride, shape.padding, shape.dilation
    return lambda: torch.convolution(
        x, w, b, stride, padding, dilation, shape.transposed, shape.output_padding, shape.groups
    )


@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """A model of that layer alone in ONNX Runtime, on the processor."""

    @property
    def version(self) -> str:
        return str(require("onnxruntime", extra="onnx", why="it is what is to be timed").__version__)

    def prepared(self, shapes: Iterable[LayerShape], threads: int, times: int = 1) -> list[Run]:
        ort: Any = require("onnxruntime", extra="onnx", why="it is what is to be timed")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3

        def one(shape: LayerShape) -> Run:
            session = ort.InferenceSession(in_a_row(shape, times), options, providers=["CPUExecutionProvider"])
            fed = {"x": torch.rand(_input(shape)).to(getattr(torch, shape.dtype)).numpy()}
            return lambda: session.run(None, fed)

        return [one(s) for s in shapes]


@dataclass(frozen=True)
class OpenVino(Runtime):
    """The same model in OpenVINO, on the processor, computed in float32."""

    @property
    def version(self) -> str:
        return metadata.version(require("openvino", extra="openvino", why="it is what is to be timed").__name__)

    def prepared(self, shapes: Iterable[LayerShape], threads: int, times: int = 1) -> list[Run]:
        core: Any = require("openvino", extra="openvino", why="it is what is to be timed").Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}

        def one(shape: LayerShape) -> Run:
            model = core.read_model(in_a_row(shape, times))
            request = core.compile_model(model, "CPU", settings).create_infer_request()
            fed = [torch.rand(_input(shape)).to(getattr(torch, shape.dtype)).numpy()]
            return lambda: request.infer(fed, share_inputs=True)

        return [one(s) for s in shapes]


RUNTIMES: dict[str, Callable[[], Runtime]] = {"eager": Eager, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def runtime_named(name: str, device: str = "cpu") -> Runtime:
    """A runtime by its name; `device` is for eager alone.

    Errors: `UnknownNameError`, and `SpecError` for a device that a runtime does not run on.
    """
    if name not in RUNTIMES:
        raise UnknownNameError("runtime", name, RUNTIMES)
    if name == "eager":
        return Eager(device)
    if device != "cpu":
        raise SpecError(f"layers are timed in {name} on the processor only, not on {device}")
    return RUNTIMES[name]()


def in_a_row(shape: LayerShape, times: int = 1) -> bytes:
    """An ONNX model of nothing but the layer, so many times in a row, with random weights.

    Errors: `SpecError` for types other than float32 and float16, `MissingExtraError` without onnx.
    """
    onnx: Any = require("onnx", extra="onnx", why="layers are handed to the runtime as ONNX models")
    if shape.dtype not in ("float32", "float16"):
        raise SpecError(f"layers in {shape.dtype} are not timed in this runtime: convert the model to float32")
    dtype = getattr(onnx.TensorProto, {"float32": "FLOAT", "float16": "FLOAT16"}[shape.dtype])
    sizes = {"w": shape.weight} | ({"b": (shape.outputs,)} if shape.bias else {})
    held = [
        onnx.numpy_helper.from_array(torch.rand(n).to(getattr(torch, shape.dtype)).numpy(), name)
        for name, n in sizes.items()
    ]
    more: dict[str, Any] = {"transB": 1}
    kind = "Gemm"
    if shape.conv:
        kind = "ConvTranspose" if shape.transposed else "Conv"
        more = {
            "strides": list(shape.stride),
            "pads": [*shape.padding, *shape.padding],
            "dilations": list(shape.dilation),
            "group": shape.groups,
        }
        if shape.transposed:
            more["output_padding"] = list(shape.output_padding)
    names = ["x", *(f"h{i}" for i in range(1, times)), "y"]
    nodes = [onnx.helper.make_node(kind, [a, *sizes], [b], **more) for a, b in pairwise(names)]
    x = onnx.helper.make_tensor_value_info("x", dtype, _input(shape))
    y = onnx.helper.make_tensor_value_info("y", dtype, None)
    graph = onnx.helper.make_graph(nodes, "layer", [x], [y], held)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _input(shape: LayerShape) -> tuple[int, ...]:
    return (shape.rows, shape.inputs, *shape.size)
