"""What a runtime is: a value that says whether it can run here, and opens sessions of models."""

from __future__ import annotations

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from prunus.core.errors import SpecError, listed
from prunus.core.task import Example
from prunus.deploy.calling import subject_call
from prunus.deploy.onnx import Exported, export_onnx, named_inputs
from prunus.graph.flow import tensors_in

Precision = Literal["float32", "bfloat16", "int8"]
Pattern = Literal["unstructured", "blocks", "2:4"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Session:
    """A model made ready by a runtime for one example.

    Attributes:
        run: one inference of the example, what is timed.
        tensors: what `run` returned, as the model's output tensors in order.
        bytes: of what the runtime loads: the file, or parameters and buffers.
        close: gives back what the session holds.
        device: where it runs.
        notes: what a user should know of it.
    """

    run: Callable[[], Any]
    tensors: Callable[[Any], list[Tensor]]
    bytes: int
    close: Callable[[], None]
    device: torch.device = torch.device("cpu")
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that runtimes run, in evaluation mode, with one example; its ONNX file is written once, when asked for.

    Attributes:
        model: not changed by any runtime.
        args, kwargs: the example, see `prunus.deploy.calling.subject_call`.
        folder: for the files of runtimes.
        calib: further examples, from which ranges of activations are read for int8.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    folder: Path
    calib: tuple[Example | Tensor, ...] = ()

    @property
    def example(self) -> Example | Tensor:
        """The example as the functions of this package take it."""
        return self.kwargs or self.args

    @cached_property
    def onnx(self) -> Exported:
        """The model as an ONNX file, proved equal. Errors: those of `export_onnx`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return export_onnx(self.model, self.example, self.folder / "model.onnx")

    def named(self, example: Example | Tensor | None = None) -> dict[str, Any]:
        """An example's tensors as arrays, by the names of the ONNX graph's inputs. Errors: `SpecError` for bfloat16."""
        args, kwargs = (self.args, self.kwargs) if example is None else subject_call(self.model, example)
        found = named_inputs(self.onnx.inputs, args, kwargs)
        if found is None:
            raise SpecError(f"the ONNX graph takes {len(self.onnx.inputs)} inputs, the example has another number")
        if narrow := [name for name, t in found.items() if t.dtype == torch.bfloat16]:
            raise SpecError(f"{listed(narrow)}: no bfloat16 goes in from Python; give the model and input in float32")
        return {name: t.detach().cpu().numpy() for name, t in found.items()}


def output_tensors(out: Any) -> list[Tensor]:
    """The tensors of whatever a model returned, in order, on the processor."""
    return [t.detach().cpu() for t in tensors_in(out)]


@dataclass(frozen=True)
class Runtime(ABC):
    """One way of running a model.

    Attributes:
        precision: what it computes in.
        name: of the runtime without its precision.
        skips: patterns of zeros that it can turn into speed; dense arithmetic skips none.
        library, extra: what has to be installed for it, and by which extra; empty where PyTorch is enough.
    """

    precision: Precision = "float32"
    name: ClassVar[str] = ""
    skips: ClassVar[frozenset[Pattern]] = frozenset()
    library: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    @property
    def title(self) -> str:
        """The name by which a user asks for it: `onnxruntime`, `onnxruntime-int8`."""
        return self.name if self.precision == "float32" else f"{self.name}-{short(self.precision)}"

    def missing(self) -> str:
        """Why it cannot run on this machine, with what to install; empty if it can. Nothing is run."""
        if self.library and find_spec(self.library) is None:
            return f"{self.library} is not installed: pip install 'prunus[{self.extra}]'"
        return ""

    def ready(self, subject: Subject) -> None:
        """What is done once before a session is made: files are written, libraries loaded. Errors: those of `open`."""
        if self.library:
            with silent():
                importlib.import_module(self.library)

    @abstractmethod
    def open(self, subject: Subject, threads: int) -> Session:
        """Make a model ready.

        Args:
            subject: the model with its example.
            threads: how many threads an inference may use; PyTorch is set to as many already.

        Errors: `PrunusError` where the runtime cannot take the model.
        """


def short(precision: Precision) -> str:
    """`f32`, `bf16` or `int8`."""
    return {"float32": "f32", "bfloat16": "bf16", "int8": "int8"}[precision]


@contextmanager
def silent() -> Iterator[None]:
    """What libraries tell their loggers while they are loaded, and tools about every file, is left out."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
