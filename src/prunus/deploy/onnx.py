"""ONNX files of compact models, checked and compared before they are left behind."""

from __future__ import annotations

import importlib
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import PrunusError, SpecError, StructureError, VerificationError, require
from prunus.core.task import Example
from prunus.deploy.atomic import check_writable, disk_told, write_bytes
from prunus.deploy.calling import plain_outputs, subject_call
from prunus.graph.flow import tensors_in
from prunus.graph.running import call, quiet, unwrap
from prunus.graph.verify import largest_difference

INLINE_LIMIT = 1 << 30
"""Weights beyond this many bytes lie in a file of their own: a protobuf message holds at most 2 GiB."""

_BFLOAT16 = 22
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Exported:
    """An ONNX file that was written.

    Attributes:
        path: the file.
        weights: the file beside it that holds the weights, where they are too large for one file.
        opset: the version of the operators.
        inputs: names of the graph's inputs, in the order of the example's tensors.
        outputs: names of its outputs.
        error: the largest difference between ONNX Runtime's outputs and the model's, over the largest value of each
            output; None where they were not compared.
        reason: why they were not compared.
    """

    path: Path
    weights: Path | None
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    error: float | None = None
    reason: str = ""


@disk_told
def export_onnx(
    model: nn.Module,
    example: Example | Tensor,
    path: str | Path,
    *,
    opset: int | None = None,
    dynamic_shapes: Any = None,
    tol: float | None = None,
) -> Exported:
    """Write a model as ONNX, in evaluation mode, and prove that ONNX Runtime computes the same.

    Args:
        model: any module, compact or not; it is not changed.
        example: an input. A transformers model is exported without its key-value cache, unless the example says
            `use_cache`, and its experts as batched products where PyTorch cannot translate grouped ones.
        path: the file. What is there is replaced in one step, once everything was checked. Weights of more than 1 GiB
            lie in `<name>.<digits>.data` beside it.
        opset: the version of ONNX's operators; left out, what PyTorch prefers, and 22 for a model in bfloat16, which
            convolutions take from that version on.
        dynamic_shapes: which axes may vary, as `torch.export` takes it (`{"x": {0: "batch"}}`); left out, every shape
            is that of the example.
        tol: how far outputs may be apart, relative to the largest value of each; left out, 1e-9 for float64, 1e-4 for
            float32, 1e-2 for float16, 5e-2 for bfloat16, whichever is the least precise of weights and outputs.

    Returns: what was written. Outputs are compared where `onnxruntime` is installed and has kernels for the model's
        type; `Exported.error` says how far they were apart.
    Cost: some seconds, one run of the model and one of the runtime, a copy of the weights.
    Errors: `MissingExtraError` without the `onnx` extra; `StructureError` where PyTorch cannot translate the model;
        `VerificationError` where the file is not valid or computes something else. Nothing is written then.
    """
    require("onnx", extra="onnx", why="ONNX files are checked with it")
    require("onnxscript", extra="onnx", why="PyTorch writes ONNX with it")
    path, model = Path(path), unwrap(model)
    if path.is_dir():
        raise SpecError(f"{path} is a folder: give the name of a file, such as {path / 'model.onnx'}")
    check_writable(path.absolute().parent)
    if any(t.is_meta for t in model.parameters()):
        raise SpecError("this model is on the meta device and has no weights to write: load them first")
    args, kwargs = subject_call(model, example)
    if opset is None and any(t.dtype == torch.bfloat16 for t in model.state_dict().values() if isinstance(t, Tensor)):
        opset = _BFLOAT16
    with quiet(model):
        expected = list(tensors_in(call(model, kwargs or args)))
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values() if isinstance(t, Tensor))
    data = f"{path.name}.{uuid.uuid4().hex[:8]}.data" if size > INLINE_LIMIT else None
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    with TemporaryDirectory(prefix=".prunus-onnx-", dir=parent) as folder:
        file = Path(folder) / path.name
        with quiet(model):
            program = _written(model, args, kwargs, opset, dynamic_shapes, file, data)
        inputs = tuple(str(i.name) for i in program.model.graph.inputs)
        outputs = tuple(str(o.name) for o in program.model.graph.outputs)
        found, reason = _run(file, inputs, args, kwargs)
        most = tolerance(model, expected) if tol is None else tol
        apart = None if found is None else _compared(expected, found, most)
        _place(file, path, data)
    version = int(program.model.opset_imports.get("", 0))
    return Exported(path, None if data is None else path.with_name(data), version, inputs, outputs, apart, reason)


def _written(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    opset: int | None,
    dynamic_shapes: Any,
    file: Path,
    data: str | None,
) -> Any:
    """PyTorch's ONNX program of the model, in a file that is valid. Errors: `StructureError`, `VerificationError`."""
    onnx = importlib.import_module("onnx")
    first = ""
    for optimize in (True, False):  # what folds constants forgets their type at times
        try:
            program = _translated(model, args, kwargs, opset, dynamic_shapes, optimize)
        except StructureError:
            with _batched_experts(model) as others:
                if not others:
                    raise
                program = _translated(model, args, kwargs, opset, dynamic_shapes, optimize)
        importlib.import_module("onnx_ir").save(program.model, file, external_data=data)
        try:
            onnx.checker.check_model(str(file), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            first = first or str(error).strip().partition("\n")[0][:300]
        else:
            return program
    raise VerificationError(
        f"what PyTorch wrote of this {type(model).__name__} is not valid ONNX: {first}. Its dense form has the same "
        "limits; another opset= may help, and prunus.deploy.export(..., to='torch') goes without"
    )


@contextmanager
def _batched_experts(model: nn.Module) -> Iterator[bool]:
    """Experts of a transformers model as batched products; whether that is another form than the one they have.

    By default they run as grouped products, for which ONNX has no operator. Both forms compute the same.
    """
    read, write = (getattr(model, f"{verb}_experts_implementation", None) for verb in ("get", "set"))
    before = read() if callable(read) and callable(write) else {"": "batched_mm"}
    if set(before.values()) <= {"batched_mm"} or not callable(write):
        yield False
        return
    try:
        try:
            write("batched_mm")
        except ValueError:  # a model without experts
            yield False
        else:
            yield True
    finally:
        write(before)


def _translated(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    opset: int | None,
    dynamic_shapes: Any,
    optimize: bool,
) -> Any:
    """PyTorch's ONNX program of the model."""
    with warnings.catch_warnings(), plain_outputs(model):
        # What torch and onnxscript say to each other's developers.
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                model,
                args,
                kwargs=kwargs,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                optimize=optimize,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            first = str(cause).strip().partition("\n")[0]
            raise StructureError(
                f"PyTorch cannot export this {type(model).__name__} to ONNX: {type(cause).__name__}: {first}. "
                "Its dense form has the same limits; torch.export.export on it shows where"
            ) from error


def _run(
    file: Path, names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Tensor] | None, str]:
    """The outputs that ONNX Runtime computes from the example; or None and why not."""
    try:
        runtime = importlib.import_module("onnxruntime")
        raised = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ModuleNotFoundError:
        return None, "onnxruntime is not installed: pip install 'prunus[onnx]'"
    named = named_inputs(names, args, kwargs)
    if named is None:
        count = len(list(tensors_in((args, dict(kwargs)))))
        return None, f"the graph takes {len(names)} inputs and the example has {count}"
    if any(t.dtype == torch.bfloat16 for t in named.values()):
        return None, "ONNX Runtime takes no bfloat16 from Python"
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {n: named[n].detach().cpu().numpy() for n in names})
    except (raised.NotImplemented, raised.InvalidGraph, raised.Fail) as error:
        return None, f"ONNX Runtime cannot run it here: {str(error).strip()}"
    except (raised.RuntimeException, raised.InvalidArgument) as error:
        raise VerificationError(f"the exported model does not run: {error}") from error
    return [torch.as_tensor(value) for value in found], ""


def named_inputs(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The example's tensors by the names of a graph's inputs; None where their number is another."""
    named = {n: t for n, t in kwargs.items() if isinstance(t, Tensor)}
    if set(named) == set(names):
        return named
    leaves = list(tensors_in((args, dict(kwargs))))
    return dict(zip(names, leaves, strict=True)) if len(leaves) == len(names) else None


def tolerance(model: nn.Module, expected: Sequence[Tensor]) -> float:
    """How far outputs may be apart: by the least precise type of floating point among them and the model's weights."""
    return max((_TOLERANCE.get(t.dtype, 0.0) for t in (*expected, *model.parameters())), default=0.0)


def _compared(expected: list[Tensor], found: list[Tensor], most: float) -> float:
    """The largest relative difference of the outputs, if it is allowed."""
    if len(expected) != len(found):
        raise VerificationError(f"the exported model has {len(found)} outputs, the model {len(expected)}")
    apart = largest_difference([t.detach().cpu() for t in expected], found)
    if not apart <= most:
        raise VerificationError(
            f"the exported model's outputs are {apart:.1e} of their largest value apart (allowed: {most:.0e})"
        )
    return apart


def _place(file: Path, path: Path, data: str | None) -> None:
    """Put the checked file where it was asked for; weights of their own come first, under a name of their own."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            (file.parent / data).replace(path.with_name(data))
    except OSError as error:
        raise PrunusError(f"could not write {path}: {error.strerror or error}. What was there is unchanged") from error
    try:
        write_bytes(path, file.read_bytes())
    except PrunusError:
        if data is not None:
            path.with_name(data).unlink(missing_ok=True)
        raise
    own = re.compile(re.escape(path.name) + r"\.[0-9a-f]{8}\.data")
    for left in path.parent.iterdir():
        if own.fullmatch(left.name) and left.name != data:
            left.unlink(missing_ok=True)  # the weights of the file that was replaced
