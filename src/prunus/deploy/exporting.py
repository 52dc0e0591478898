"""Models as files of other runtimes, each checked against eager PyTorch before it is left behind."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import RawIOBase, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn

from prunus.core.errors import PrunusError, SpecError, StructureError, UnknownNameError, VerificationError, require
from prunus.core.task import Example
from prunus.deploy.atomic import check_replaceable, check_space, check_writable, disk_told, new_folder
from prunus.deploy.calling import exported_program, subject_call
from prunus.deploy.copies import deployed_copy
from prunus.deploy.onnx import export_onnx, tolerance
from prunus.deploy.quantize import quantized_onnx
from prunus.deploy.runtimes.base import Subject, output_tensors, silent
from prunus.graph.running import call, quiet, unwrap
from prunus.graph.verify import largest_difference

SUFFIXES: dict[str, str] = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch": ".pt2",
    "executorch": ".pte",
    "mnn": ".mnn",
    "coreml": ".mlpackage",
}
PACKAGES: dict[str, str] = {"coreml": "Manifest.json"}
"""Kinds that are folders, and the file by which an older one is known, so that it may be replaced."""

TOLERANCE = {"float32": 1e-4, "int8": 1.0}
ROUGHER = {"mnn": 1e-3}  # its GELU is a polynomial that is up to 5e-4 off


@dataclass(frozen=True)
class Written:
    """A file that was written for a runtime.

    Attributes:
        path: the file to open.
        to: the kind. precision: what it computes in.
        files: it and those beside it that belong to it.
        bytes: of all of them.
        error: the largest difference of its outputs to eager PyTorch, over the largest value of each; None where the
            runtime cannot be run here.
        reason: why not.
        flushed: numbers too small for full precision that were written as zeros.
        notes: what a user should know of the file.
    """

    path: Path
    to: str
    precision: str
    files: tuple[Path, ...]
    bytes: int
    error: float | None
    reason: str
    flushed: int
    notes: tuple[str, ...] = ()


@disk_told
def export(
    model: nn.Module,
    example: Example | Tensor,
    path: str | Path,
    to: str = "onnx",
    *,
    precision: Literal["float32", "int8"] = "float32",
    calib: Sequence[Example | Tensor] = (),
) -> Written:
    """Write a model for a runtime, in evaluation mode, and check what the file computes.

    Args:
        model: any module, compact or not; not changed. Weights too small for full precision become zeros in the file.
        example: an input; its shape is the file's.
        path: the file; what is there is replaced once everything was checked. It ends in what `SUFFIXES` says.
        to: `onnx`; `openvino` (its own two files); `torch` (`torch.export`, read by `torch.export.load`); `executorch`
            (through XNNPACK, for phones); `mnn` (zeros skipped where that is measured faster here); `coreml` (a folder,
            for Apple's systems; layers with zeros are written sparse).
        precision: `int8`, for onnx and openvino: ranges of activations are read from `calib` (or the one example); the
            difference is told and not judged, measure the accuracy.

    Cost: some seconds to a minute, a run of the model and one of the file.
    Errors: `SpecError`; `MissingExtraError`; `StructureError` where the model cannot be translated;
        `VerificationError` where the file computes something else. Nothing is written then.
    """
    path = Path(path)
    if to not in SUFFIXES:
        raise UnknownNameError("kind of file", to, SUFFIXES)
    if precision not in TOLERANCE or (precision == "int8" and to not in ("onnx", "openvino")):
        raise SpecError(f"precision={precision!r} to {to}: float32, or int8 to onnx or openvino")
    if path.suffix != SUFFIXES[to]:
        raise SpecError(f"{path}: the name of a file for {to} ends in {SUFFIXES[to]}")
    if to in PACKAGES:
        check_replaceable(path, mark=PACKAGES[to])
    elif path.is_dir():
        raise SpecError(f"{path} is a folder: give the name of a file, such as {path / f'model{SUFFIXES[to]}'}")
    check_writable(path.absolute().parent)
    if any(t.is_meta for t in unwrap(model).parameters()):
        raise SpecError("this model is on the meta device and has no weights to write: load them first")
    own, tiny = deployed_copy(model)
    flushed = sum(tiny.values())
    # Most are made of another file, which lies there too.
    check_space(path.absolute().parent, (1 if to == "torch" else 2) * _held(own))
    if (to, precision) == ("onnx", "float32"):
        done = export_onnx(own, example, path)
        both = (done.path, *([done.weights] if done.weights is not None else []))
        return Written(path, to, precision, both, _size(both), done.error, done.reason, flushed)
    args, kwargs = subject_call(own, example)
    with quiet(own):
        expected = output_tensors(call(own, kwargs or args))
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    with TemporaryDirectory(prefix=".prunus-export-", dir=parent) as folder, quiet(own):
        subject = Subject(own, args, kwargs, Path(folder) / "work", tuple(calib))
        target = Path(folder) / path.name
        found, words = _WRITERS[to](subject, target, precision)
        most = max(ROUGHER.get(to, TOLERANCE[precision]), tolerance(own, expected))
        apart = None if found is None else _apart(expected, found, most)
        made = [f for f in sorted(target.parent.iterdir()) if f != subject.folder]
        files = tuple(_placed(f, path.with_name(f.name), PACKAGES.get(to, "")) for f in made)
    reason, notes = (words, ()) if found is None else ("", (words,) if words else ())
    return Written(path, to, precision, files, _size(files), apart, reason, flushed, notes)


def _held(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, tied ones once."""
    return sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())


def _size(files: tuple[Path, ...]) -> int:
    every = (f for named in files for f in (named.rglob("*") if named.is_dir() else (named,)))
    return sum(f.stat().st_size for f in every if f.is_file())


def _apart(expected: list[Tensor], found: list[Tensor], most: float) -> float:
    if len(expected) != len(found):
        raise VerificationError(f"the file has {len(found)} outputs, the model {len(expected)}")
    alike = [f.to(e.dtype) for e, f in zip(expected, found, strict=True)]
    apart = largest_difference(expected, alike)
    if not apart <= most:
        raise VerificationError(
            f"the file's outputs are {apart:.1e} of their largest value from the model's (allowed: {most:.0e})"
        )
    return apart


def _placed(file: Path, path: Path, mark: str) -> Path:
    if file.is_dir():
        with new_folder(path, mark=mark) as fresh:
            for child in file.iterdir():
                child.replace(fresh / child.name)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return file.replace(path)
    except OSError as error:
        raise PrunusError(f"could not write {path}: {error.strerror or error}") from error


Found = tuple[list[Tensor] | None, str]
"""What a file computes, and what is to be known of it; or None, and why it cannot be run here."""


def _as_onnx(subject: Subject, path: Path, precision: str) -> Found:
    """An ONNX file with int8 arithmetic; `export_onnx` writes those in full precision."""
    from prunus.deploy.runtimes.onnxruntime_ import session_of

    shutil.copyfile(quantized_onnx(subject, static=True), path)
    session = session_of(path, subject.named(), 1)
    return session.tensors(session.run()), ""


def _as_openvino(subject: Subject, path: Path, precision: str) -> Found:
    """OpenVINO's graph (.xml) and its weights (.bin), in full precision."""
    from prunus.deploy.runtimes.openvino_ import session_of, written

    openvino = require("openvino", extra="openvino", why="it writes its own files")
    int8 = precision == "int8"
    source, feeds = (quantized_onnx(subject, static=True), subject.named()) if int8 else written(subject)
    try:
        openvino.save_model(openvino.Core().read_model(str(source)), str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise PrunusError(f"OpenVINO could not write it: {error}. Is the disk full? Nothing was left behind") from error
    session = session_of(path, feeds, 1)
    return session.tensors(session.run()), ""


class _Careful(RawIOBase):
    """A file whose first error is kept in `error`: PyTorch's writer ends the process where a disk is full."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._kept(self._file.seek, offset, whence)
        return offset

    def flush(self) -> None:
        self._kept(self._file.flush)

    def write(self, data: Any) -> int:
        self._kept(self._file.write, data)
        return len(data)

    def _kept(self, action: Callable[..., Any], *args: Any) -> None:
        try:
            if self.error is None:
                action(*args)
        except OSError as error:
            self.error = error


def _as_torch(subject: Subject, path: Path, precision: str) -> Found:
    """PyTorch's own exported program."""
    program = exported_program(subject.model, subject.args, subject.kwargs)
    with open(path, "wb") as file:
        careful = _Careful(file)
        torch.export.save(program, careful)  # type: ignore[arg-type]  # it has what is asked for: write and flush
        if careful.error is not None:
            raise careful.error
    with torch.no_grad():
        again = torch.export.load(str(path)).module()(*subject.args, **subject.kwargs)
    return output_tensors(again), ""


def _as_executorch(subject: Subject, path: Path, precision: str) -> Found:
    """ExecuTorch's program, and what it computes."""
    from prunus.deploy.runtimes.executorch_ import ExecuTorch, write_executorch

    write_executorch(subject, path)
    subject.folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, subject.folder / "model.pte")
    session = ExecuTorch().open(subject, 1)
    return session.tensors(session.run()), ""


def _as_mnn(subject: Subject, path: Path, precision: str) -> Found:
    """MNN's file, in the form that is fastest here on one thread."""
    from prunus.deploy.runtimes.mnn_ import fastest

    file, session = fastest(subject, 1)
    shutil.copyfile(file, path)
    return session.tensors(session.run()), " ".join(session.notes)


def _as_coreml(subject: Subject, path: Path, precision: str) -> Found:
    """A program of Core ML in full precision, for iOS 17 and macOS 14 or later; layers with zeros lie sparse in it."""
    with silent(), warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter(
            "ignore"
        )  # progress and remarks on every file, and on versions beyond those it was tried with
        tools = require("coremltools", extra="coreml", why="it writes its own files")
        optimize = importlib.import_module("coremltools.optimize.coreml")
        # Its translator knows the operators that others are made of, not all of them.
        program = exported_program(subject.model, subject.args, subject.kwargs).run_decompositions({})
        try:
            made = tools.convert(
                program,
                minimum_deployment_target=tools.target.iOS17,
                compute_precision=tools.precision.FLOAT32,
                skip_model_load=True,
            )
            zeros = optimize.OpThresholdPrunerConfig(threshold=1e-38, minimum_sparsity_percentile=0.5)
            made = optimize.prune_weights(made, optimize.OptimizationConfig(global_config=zeros))
        except (ValueError, RuntimeError, NotImplementedError, TypeError, KeyError, AssertionError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StructureError(f"coremltools cannot translate it: {first}") from error
        made.save(str(path))
    return None, "Core ML runs on Apple's systems only: compare its outputs there before you rely on it"


_WRITERS: dict[str, Callable[[Subject, Path, str], Found]] = {
    "onnx": _as_onnx,
    "openvino": _as_openvino,
    "torch": _as_torch,
    "executorch": _as_executorch,
    "mnn": _as_mnn,
    "coreml": _as_coreml,
}
