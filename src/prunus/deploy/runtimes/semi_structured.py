"""2:4 on NVIDIA's tensor cores. Written from PyTorch's documentation; it never ran on a card."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunus.core.errors import PrunusError
from prunus.deploy.patterns import two_of_four
from prunus.deploy.runtimes.base import Pattern, Precision, Runtime, Session, Subject
from prunus.deploy.runtimes.torch_ import own_copy, session_of
from prunus.measure.inputs import device_of
from prunus.measure.timing import interleaved, stopwatch

RUNS = 30


@dataclass(frozen=True)
class SemiStructured(Runtime):
    """Eager bfloat16 with the linear layers that are 2:4 compressed, each only where that is measured faster."""

    precision: Precision = "bfloat16"
    name: ClassVar[str] = "semi-structured"
    skips: ClassVar[frozenset[Pattern]] = frozenset({"2:4"})

    def missing(self) -> str:
        """It needs a card whose tensor cores skip the zeros of 2:4."""
        if not torch.cuda.is_available():
            return "2:4 needs an NVIDIA card (Ampere or later), and PyTorch sees none here"
        if torch.cuda.get_device_capability() < (8, 0):
            return f"{torch.cuda.get_device_name()} does not skip the zeros of 2:4: Ampere or later does"
        return ""

    def open(self, subject: Subject, threads: int) -> Session:
        """Each layer is timed dense and compressed on its own input. A model on the processor is refused."""
        model, args, kwargs = own_copy(subject, torch.bfloat16)
        if device_of(model, args or kwargs).type != "cuda":
            raise PrunusError("the model is on the processor: move it and the example to the card")
        packed, able = 0, 0
        for layer, x in _inputs(model, args, kwargs):
            if two_of_four(layer.weight.detach()):
                able += 1
                packed += _packed_(layer, x)
        note = f"{packed} of {able} layers that are 2:4 run compressed; the others were no faster so"
        return session_of(model, model, args, kwargs, (note,))


def _inputs(model: nn.Module, args: Any, kwargs: Any) -> list[tuple[nn.Linear, Tensor]]:
    """Every linear layer with what it is given."""
    found: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        m.register_forward_pre_hook(lambda layer, given: found.append((layer, given[0].detach())))
        for m in model.modules()
        if isinstance(m, nn.Linear)
    ]
    try:
        with torch.inference_mode():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _packed_(layer: nn.Linear, x: Tensor) -> bool:
    """Compress the layer's weight if the card takes its shape and runs it faster so."""
    dense = layer.weight
    try:
        compressed = torch.sparse.to_sparse_semi_structured(dense.detach())
        clock = stopwatch(x.device)

        def run(weight: Tensor) -> Tensor:
            with torch.inference_mode():
                return nn.functional.linear(x, weight, layer.bias)

        took = interleaved(
            {"dense": lambda: run(dense), "2:4": lambda: run(compressed)},
            warmup=3,
            runs=RUNS,
            min_seconds=0.0,
            clocks={"dense": clock, "2:4": clock},
        )
    except RuntimeError:  # shapes that its kernels do not take
        return False
    if median(took["2:4"]) >= median(took["dense"]):
        return False
    layer.weight = nn.Parameter(compressed, requires_grad=False)
    return True


RUNTIMES = (SemiStructured(),)
