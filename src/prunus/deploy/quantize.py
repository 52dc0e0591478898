"""int8: ONNX files with int8 arithmetic, and linear layers of PyTorch models with int8 weights or products."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from prunus.core.errors import PrunusError, SpecError, require
from prunus.deploy.runtimes.base import Subject, silent

Int8 = Literal["weights", "dynamic"]


def quantized_onnx(subject: Subject, *, static: bool) -> Path:
    """The subject's model as an ONNX file with int8 arithmetic, made once; accuracy is not looked at.

    Args:
        subject: its `calib` (its one example, where there are none) gives the ranges of activations, if `static`.
        static: ranges fixed beforehand, convolutions and linear layers, as pairs of quantize and dequantize that ONNX
            Runtime and OpenVINO both fuse. If not: linear layers only, ranges of every input as it comes.

    Cost: seconds; if static, a run of the model per example.
    Errors: `MissingExtraError` without the `onnx` extra; `PrunusError` where ONNX Runtime cannot quantize the model.
    """
    made = subject.folder / f"{'static' if static else 'dynamic'}-int8.onnx"
    if made.exists():
        return made
    require("onnxruntime", extra="onnx", why="it quantizes ONNX files")
    tools = importlib.import_module("onnxruntime.quantization")
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    source, ready = subject.onnx.path, subject.folder / f"{made.stem}-ready.onnx"
    # Processors without VNNI add two products in 16 bits: with 7 bits of weight they cannot overflow.
    narrow = not torch.cpu._is_vnni_supported()
    try:
        with silent():
            # Folds normalizations into convolutions, or they stay in float32 between them.
            shapes.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True, skip_onnx_shape=not static)
            if not static:
                _without_shapes(ready)
            if static:
                rows = [subject.named(e) for e in subject.calib] or [subject.named()]
                tools.quantize_static(
                    str(ready),
                    str(made),
                    _Rows(rows),
                    quant_format=tools.QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=narrow,
                    activation_type=tools.QuantType.QUInt8,
                    weight_type=tools.QuantType.QInt8,
                    op_types_to_quantize=["Conv", "MatMul", "Gemm", "Add", "GlobalAveragePool", "MaxPool"],
                )
            else:
                tools.quantize_dynamic(
                    str(ready),
                    str(made),
                    per_channel=True,
                    reduce_range=narrow,
                    weight_type=tools.QuantType.QInt8,
                    op_types_to_quantize=["MatMul", "Gemm"],
                )
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        made.unlink(missing_ok=True)
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PrunusError(f"ONNX Runtime cannot quantize it: {first}") from error
    finally:
        ready.unlink(missing_ok=True)
    return made


def _without_shapes(file: Path) -> None:
    """Drop the shapes noted for values in between: transposed weights would contradict them."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(str(file))
    del model.graph.value_info[:]
    onnx.save(model, str(file))


class _Rows:
    """Examples in the form in which ONNX Runtime's calibration asks for them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows: Iterator[dict[str, Any]] = iter(rows)

    def get_next(self) -> dict[str, Any] | None:
        """The next example; None after the last."""
        return next(self._rows, None)


def quantize_(model: nn.Module, how: Int8 = "dynamic") -> nn.Module:
    """Replace the linear layers' weights by int8 ones, one scale per output row; zeros stay zeros.

    Args:
        model: changed in place; prune and compact first, then quantize: masks and widths are then exact.
        how: `weights` keeps activations and products in floating point (small file, no faster by itself); `dynamic`
            multiplies in int8, ranges of activations read from every input.

    Cost: one pass over the weights. Errors: `MissingExtraError` without the `quant` extra; `SpecError` for another
        word, or a model without linear layers.
    """
    if how not in ("weights", "dynamic"):
        raise SpecError(f"how={how!r}: weights or dynamic")
    if not any(isinstance(m, nn.Linear) for m in model.modules()):
        raise SpecError("this model has no linear layer to quantize; convolutions: ONNX Runtime or OpenVINO with int8")
    with silent():
        require("torchao", extra="quant", why="it holds int8 weights")
        tools = importlib.import_module("torchao.quantization")
    kind = tools.Int8WeightOnlyConfig if how == "weights" else tools.Int8DynamicActivationInt8WeightConfig
    tools.quantize_(model, kind())
    return model
