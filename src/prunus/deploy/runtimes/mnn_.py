"""MNN, the runtime for phones and processors, which skips zeros in single weights and in blocks of outputs."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch

from prunus.core.errors import PrunusError, SpecError, StructureError, require
from prunus.deploy.denormals import arithmetic_kept
from prunus.deploy.runtimes.base import Pattern, Runtime, Session, Subject
from prunus.measure.timing import interleaved, quartiles

BLOCKS = (1, 4, 8)
"""Consecutive outputs that are skipped together, where all of their weights to one input are zero."""

RUNS = 15
NOTABLE = 0.3  # MNN's converter leaves a layer dense that has a smaller share of zeros, whatever the block

# The converter is called as a library and in a process of its own. MNN's own command would first install a package and
# look for its maker's server, to which it reports what was converted; the converter prints much, and may end a process.
_CONVERT = "import sys; sys.path.insert(0, sys.argv.pop(1)); import _tools; _tools.mnnconvert(sys.argv)"


@dataclass(frozen=True)
class MNN(Runtime):
    """MNN on the processor, in float32: with dense kernels, or those for zeros where these are measured faster."""

    name: ClassVar[str] = "mnn"
    skips: ClassVar[frozenset[Pattern]] = frozenset(("unstructured", "blocks"))
    library: ClassVar[str] = "MNN"
    extra: ClassVar[str] = "mnn"

    def ready(self, subject: Subject) -> None:
        """Writes the files, one for each size of block that there are zeros for."""
        with _silent():
            super().ready(subject)
        for block in blocks_of(subject):
            file_of(subject, block)

    def open(self, subject: Subject, threads: int) -> Session:
        """From the file that runs fastest here: each is timed some times, in turns."""
        return fastest(subject, threads)[1]


def fastest(subject: Subject, threads: int) -> tuple[Path, Session]:
    """The model's file with dense kernels, or with zeros skipped in blocks of 1, 4 or 8: whichever is measured fastest.

    One size of block holds for a whole file; layers with too few zeros are dense in each.

    Cost: a second per file and its size on disk; `RUNS` inferences of each. Errors: those of `write_mnn`.
    """
    feeds = subject.named()
    sessions = {b: session_of(file_of(subject, b), subject, feeds, threads) for b in blocks_of(subject)}
    if len(sessions) == 1:
        return file_of(subject, 0), sessions[0]
    took = interleaved({str(b): s.run for b, s in sessions.items()}, warmup=2, runs=RUNS, min_seconds=0.0)
    middle = {b: quartiles(took[str(b)])[1] for b in sessions}
    best = min(middle, key=lambda b: middle[b])
    dense, chosen = f"{middle[0]:.3g} ms", f"{middle[best]:.3g} ms"
    if best:
        what = "single zeros" if best == 1 else f"zeros in blocks of {best} outputs"
        note = f"{what} are skipped: {chosen}, with dense kernels {dense}"
    else:
        other = min(middle[b] for b in middle if b)
        note = f"dense kernels are faster than skipping zeros here: {dense}, the best of the others {other:.3g} ms"
    found = sessions[best]
    return file_of(subject, best), Session(found.run, found.tensors, found.bytes, found.close, notes=(note,))


def blocks_of(subject: Subject) -> tuple[int, ...]:
    """The sizes of blocks in which some matrix has zeros enough to be skipped, after 0: dense kernels."""
    weights = [p.detach() for p in subject.model.parameters() if p.ndim >= 2]
    return 0, *(b for b in BLOCKS if any(_empty(w.flatten(1), b) > NOTABLE for w in weights))


def _empty(rows: torch.Tensor, block: int) -> float:
    """The share of a matrix [out, in] that lies in blocks of zeros of so many outputs. One pass."""
    whole = rows[: len(rows) // block * block]
    if not whole.numel():
        return 0.0
    return float((whole == 0).reshape(-1, block, whole.shape[1]).all(1).float().mean())


def file_of(subject: Subject, block: int) -> Path:
    """The subject's model as a file of MNN, written once; `block` 0: dense kernels."""
    file = subject.folder / f"model-{block}.mnn"
    if not file.exists():
        write_mnn(subject.onnx.path, file, block)
    return file


def write_mnn(source: Path, path: Path, block: int = 0) -> None:
    """Write an ONNX file as MNN's, in float32; what the file computes is not looked at.

    Args:
        source: the ONNX file.
        path: the new file.
        block: how many consecutive outputs are skipped together where their weights are zero; 0: none are.

    Cost: a second or two, in a process of its own.
    Errors: `MissingExtraError` without the `mnn` extra; `StructureError` with what MNN says it cannot translate.
    """
    spec = find_spec("MNN")
    if spec is None or spec.origin is None:
        require("MNN", extra="mnn", why="it writes its own files")
        raise SpecError("MNN is there, but not as a package with its converter: install it again")
    told = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(path), "--bizCode", "prunus"]
    rule = path.with_name(f"{path.name}.rule")
    if block:
        told += ["--detectSparseSpeedUp"]
    if block > 1:
        rule.write_bytes(_rule(block))
        told += ["--compressionParamsFile", str(rule)]
    try:
        run = [sys.executable, "-I", "-c", _CONVERT, str(Path(spec.origin).parents[1]), *told]
        done = subprocess.run(run, capture_output=True, text=True, errors="replace", cwd=path.parent, check=False)
    finally:
        rule.unlink(missing_ok=True)
    if done.returncode or not path.exists() or not path.stat().st_size:
        path.unlink(missing_ok=True)
        raise StructureError(f"MNN cannot translate the ONNX file: {_reason(done.stdout + done.stderr)}")


def _rule(block: int) -> bytes:
    """MNN's message (protobuf) that says how many outputs are skipped together."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    pruner = bytes([4 << 3, block])
    params = bytes([1 << 3, 1]) + field(3, pruner)  # 1: blocks of outputs
    algorithm = bytes([1 << 3, 1]) + field(3, params)  # 1: pruning
    return field(1, b"0") + field(2, algorithm)


def _reason(told: str) -> str:
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    wrong = [n for n in lines if any(mark in n.lower() for mark in ("error", "not support", "failed", "can't"))]
    return " ".join((wrong or lines[-1:] or ["it says nothing"])[:3])


def session_of(file: Path, subject: Subject, feeds: Mapping[str, Any], threads: int) -> Session:
    """A session on a file of MNN. Errors: `PrunusError` where it cannot run it."""
    try:
        with _silent():
            library = importlib.import_module("MNN")
            settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
            manager = library.nn.create_runtime_manager((settings,))
            outputs = list(subject.onnx.outputs)
            module = library.nn.load_module_from_file(str(file), list(feeds), outputs, runtime_manager=manager)
            given = [_variable(library.expr, value) for value in feeds.values()]

            def run() -> Any:
                with arithmetic_kept():
                    return [variable.read() for variable in module.forward(given)]

            run()
    except (RuntimeError, TypeError, ValueError, SystemError) as error:
        first = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise PrunusError(f"MNN cannot run it: {first}") from error
    return Session(
        run=run,
        # Arrays may be views of memory that the next run writes over.
        tensors=lambda out: [torch.as_tensor(v).clone() for v in out],
        bytes=file.stat().st_size,
        close=lambda: None,
    )


def _variable(expr: Any, value: Any) -> Any:
    """An array as MNN takes it: it has no integers of 64 bits, and no truth values."""
    if value.dtype.kind == "f":
        return expr.const(value.astype("float32"), list(value.shape), expr.NCHW, expr.float)
    if value.size and abs(value.astype("int64")).max() > 2**31 - 1:
        raise PrunusError("MNN has integers of 32 bits only, and the example has larger ones")
    return expr.const(value.astype("int32"), list(value.shape), expr.NCHW, expr.int)


@contextmanager
def _silent() -> Iterator[None]:
    """What MNN prints when it is loaded would stand amid this process's own output."""
    sys.stdout.flush()
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    try:
        kept = os.dup(1)
    except OSError:  # no standard output at all
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        libc.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


RUNTIMES = (MNN(),)
