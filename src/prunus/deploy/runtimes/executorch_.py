"""ExecuTorch, the runtime for phones and small devices, on this machine's processor."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from prunus.core.errors import PrunusError, require
from prunus.deploy.calling import exported_program
from prunus.deploy.runtimes.base import Runtime, Session, Subject


@dataclass(frozen=True)
class ExecuTorch(Runtime):
    """What XNNPACK has kernels for runs in XNNPACK, the rest in ExecuTorch's own portable kernels."""

    name: ClassVar[str] = "executorch"
    library: ClassVar[str] = "executorch"
    extra: ClassVar[str] = "executorch"

    def ready(self, subject: Subject) -> None:
        """Writes the program."""
        super().ready(subject)
        self._file(subject)

    def open(self, subject: Subject, threads: int) -> Session:
        """From its file; the threads are those of the whole process's pool."""
        pool = importlib.import_module("executorch.extension.pybindings.portable_lib")
        pool._unsafe_reset_threadpool(threads)
        file = self._file(subject)
        program = importlib.import_module("executorch.runtime").Runtime.get().load_program(str(file))
        method = program.load_method("forward")
        if method is None:
            raise PrunusError("ExecuTorch cannot load the program that it wrote")
        inputs = [t for t in (*subject.args, *subject.kwargs.values()) if isinstance(t, Tensor)]
        return Session(
            run=lambda: method.execute(inputs),
            tensors=lambda out: [t.clone() for t in out],
            bytes=file.stat().st_size,
            close=lambda: None,
        )

    def _file(self, subject: Subject) -> Path:
        file = subject.folder / "model.pte"
        if not file.exists():
            subject.folder.mkdir(parents=True, exist_ok=True)
            write_executorch(subject, file)
        return file


def write_executorch(subject: Subject, path: Path) -> None:
    """Write a program of ExecuTorch, what XNNPACK has kernels for given to XNNPACK; nothing is compared.

    Errors: `MissingExtraError` without the `executorch` extra; `StructureError` where `torch.export` cannot follow.
    """
    edge = require("executorch.exir", extra="executorch", why="it writes its own files")
    xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lowered = edge.to_edge_transform_and_lower(
            exported_program(subject.model, subject.args, subject.kwargs), partitioner=[xnnpack.XnnpackPartitioner()]
        )
        path.write_bytes(lowered.to_executorch().buffer)


RUNTIMES = (ExecuTorch(),)
