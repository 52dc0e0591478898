"""Our own sparse kernels: layers with zeros packed where that is measured to be faster, the rest in eager PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from prunus.core.errors import PrunusError
from prunus.deploy.runtimes.base import Pattern, Runtime, Session, Subject
from prunus.deploy.runtimes.torch_ import own_copy, session_of


@dataclass(frozen=True)
class Sparse(Runtime):
    """What `prunus.sparsify` makes of the model. Layers for which packing is not faster run as in eager."""

    name: ClassVar[str] = "sparse"
    skips: ClassVar[frozenset[Pattern]] = frozenset(("unstructured", "blocks", "2:4"))

    def missing(self) -> str:
        """Why the kernels are not there: no compiler, most likely. Compiles them where that has not been done."""
        from prunus.deploy import kernels

        return "" if kernels.available() else kernels.reason()

    def open(self, subject: Subject, threads: int) -> Session:
        """Times every layer that has zeros in every form that holds it: some seconds to a minute."""
        from prunus.deploy.sparsify_ import sparsify_

        model, args, kwargs = own_copy(subject, torch.float32)
        if not any(True for _ in model.children()):
            raise PrunusError("a model of a single layer cannot be packed: put it into torch.nn.Sequential")
        found = sparsify_(model, kwargs or args, threads=threads)
        note = f"{len(found.packed)} of {len(found.layers)} layers with zeros are packed" if found.layers else ""
        return session_of(model, model, args, kwargs, (note,) if note else ())


RUNTIMES = (Sparse(),)
