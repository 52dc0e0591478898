"""One layer of a given shape, ready to be run again and again: in PyTorch eager, ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.core.errors import SpecError, UnknownNameError, require
from prunus.measure.layers import LayerShape

Run = Callable[[], object]
NODE = re.compile(r"layer_(\d+)_")
KINDS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm"})


class Runtime(ABC):
    """What runs a layer. `prepared` gives one function per shape, all alive at once."""

    clock: ClassVar[str] = "wall"
    """What its layers are timed by; tables of another clock are other tables."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the library."""

    @abstractmethod
    def prepared(self, shapes: Iterable[LayerShape], threads: int, times: int = 1) -> list[Run]:
        """times: how many of the layer in a row; more than one only where its outputs are what it takes.

        Errors: `SpecError` for a type that it does not compute in, `MissingExtraError` where it is not installed.
        """

    def sampled(self, shapes: Iterable[LayerShape], threads: int, rounds: int) -> list[list[float]] | None:
        """Milliseconds of each layer in every round by the runtime's own clock, which leaves out what changes formats
        at the ends of a network of one layer; None where a runtime has no such clock.
        """
        return None


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

    clock: ClassVar[str] = "profile"

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

    def sampled(self, shapes: Iterable[LayerShape], threads: int, rounds: int) -> list[list[float]]:
        """Of one model that holds all of the layers side by side, by its profile."""
        ort: Any = require("onnxruntime", extra="onnx", why="it is what is to be timed")
        shapes = list(shapes)
        model, fed = side_by_side(shapes)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = threads, 3, True
        with TemporaryDirectory(prefix="prunus-profile-") as folder:
            options.profile_file_prefix = str(Path(folder) / "layers")
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for _ in range(rounds + 1):
                session.run(None, fed)
            told = json.loads(Path(session.end_profiling()).read_text())
        found: list[list[float]] = [[] for _ in shapes]
        for event in told:
            named = NODE.match(event["name"])
            if named is not None and event.get("args", {}).get("op_name") in KINDS:
                found[int(named[1])].append(max(event["dur"], 0.5) / 1e3)  # whole microseconds
        return [own[1:] for own in found]


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
    names = ["x", *(f"h{i}" for i in range(1, times)), "y"]
    nodes = [_node(onnx, shape, a, b, "") for a, b in pairwise(names)]
    return _model(onnx, nodes, {"x": shape}, ["y"], _held(onnx, shape, ""))


def side_by_side(shapes: Iterable[LayerShape]) -> tuple[bytes, dict[str, Any]]:
    """An ONNX model of layers that do not see each other, and what it is fed; layer i is called `layer_i_`.

    Errors: those of `in_a_row`.
    """
    onnx: Any = require("onnx", extra="onnx", why="layers are handed to the runtime as ONNX models")
    inputs: dict[str, LayerShape] = {}
    nodes, outs, held = [], list[str](), []
    for i, shape in enumerate(shapes):
        x = "x" + "_".join(map(str, _input(shape)))  # layers of as many inputs share them
        inputs[x] = shape
        outs.append(f"layer_{i}_")
        nodes.append(_node(onnx, shape, x, outs[-1], f"{i}"))
        held += _held(onnx, shape, f"{i}")
    fed = {x: torch.rand(_input(s)).to(getattr(torch, s.dtype)).numpy() for x, s in inputs.items()}
    return _model(onnx, nodes, inputs, outs, held), fed


def _node(onnx: Any, shape: LayerShape, x: str, y: str, suffix: str) -> Any:
    """The layer, by its weights' names."""
    sizes = [f"w{suffix}", f"b{suffix}"] if shape.bias else [f"w{suffix}"]
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
    return onnx.helper.make_node(kind, [x, *sizes], [y], name=y, **more)


def _held(onnx: Any, shape: LayerShape, suffix: str) -> list[Any]:
    """Random weights of a layer. Errors: `SpecError` for types other than float32 and float16."""
    if shape.dtype not in ("float32", "float16"):
        raise SpecError(f"layers in {shape.dtype} are not timed in this runtime: convert the model to float32")
    sizes = {"w": shape.weight} | ({"b": (shape.outputs,)} if shape.bias else {})
    return [
        onnx.numpy_helper.from_array(torch.rand(n).to(getattr(torch, shape.dtype)).numpy(), name + suffix)
        for name, n in sizes.items()
    ]


def _model(onnx: Any, nodes: list[Any], inputs: Mapping[str, LayerShape], outs: list[str], held: list[Any]) -> bytes:
    types = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}
    dtype = types[next(iter(inputs.values())).dtype]
    fed = [onnx.helper.make_tensor_value_info(x, dtype, _input(s)) for x, s in inputs.items()]
    put = [onnx.helper.make_tensor_value_info(y, dtype, None) for y in outs]
    graph = onnx.helper.make_graph(nodes, "layers", fed, put, held)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _input(shape: LayerShape) -> tuple[int, ...]:
    return (shape.rows, shape.inputs, *shape.size)
