"""What a recipe may look at: data, loss, outputs. Everything a recipe does not ask for may be left out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.budget import Clock
from prunus.core.errors import DataError, SpecError

Batch = Any
Example = tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """The problem a model was, or will be, trained for.

    Attributes:
        loss: `(model, batch) -> scalar tensor`. Asked for by gradients and by training.
        train: batches to train on; iterated again and again (a DataLoader, a list, any re-iterable).
        calib: batches to score with. Left out, the first batch of `train` is used.
        metric: `(model) -> float`, the figure to judge by afterwards; the engine never calls it, so nothing is
            chosen by it.
        forward: `(model, batch) -> outputs`, without touching labels. Left out: a mapping is passed as keywords less
            `labels`, a tuple or list passes its first entry, anything else is passed as it is.
        example: one input of the model, a tuple of positional or a dict of keyword arguments, batch dimension included.
            Structure, MACs and data-free evidence are read with it. Left out, it is taken from the first batch.
        clock: `(dense, pruned, example) -> Timing`, by which a budget in latency is measured, to time another runtime
            than PyTorch on this machine (`prunus.measure.clock.latency_share`).
        general: batches of what the model should stay good at beside the task, with the same loss; for methods that
            weigh both (D-Pruner).

    >>> Task(loss=lambda model, batch: model(batch[0]).square().mean())  # doctest: +ELLIPSIS
    Task(loss=...)
    """

    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    train: Iterable[Batch] | None = None
    calib: Iterable[Batch] | None = None
    metric: Callable[[nn.Module], float] | None = None
    forward: Callable[[nn.Module, Batch], Any] | None = None
    example: Example | Tensor | None = None
    clock: Clock | None = None
    general: Iterable[Batch] | None = None

    def __repr__(self) -> str:
        given = [f"{k}=..." for k, v in vars(self).items() if v is not None]
        return f"Task({', '.join(given)})"

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs on a batch, by `forward` or the default rule above."""
        if self.forward is not None:
            return self.forward(model, batch)
        args, kwargs = inputs_of(batch)
        return model(*args, **kwargs)

    def loss_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss as a finite scalar, or an error that says what is wrong with it."""
        if self.loss is None:
            raise SpecError("this needs a loss: pass Task(loss=lambda model, batch: ...)")
        try:
            value = self.loss(model, batch)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise DataError(
                f"the loss failed on a batch of {describe(batch)}: {error}. Check that the batch fits the model's input"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SpecError(f"Task.loss must return a scalar tensor, got {shape}")
        return value

    def calibration(self) -> Iterable[Batch]:
        """The batches to score with: `calib`, else the first batch of `train`."""
        if self.calib is not None:
            return self.calib
        if self.train is not None:
            first = next(iter(self.train), None)
            if first is None:
                raise DataError("Task.train yields no batch")
            return [first]
        raise SpecError("this recipe scores with data: pass Task(calib=batches) or Task(train=batches)")

    def example_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """`(args, kwargs)` of one call of the model, from `example` or the first batch; None if neither is there."""
        if self.example is not None:
            return as_call(self.example)
        source = self.calib if self.calib is not None else self.train
        # A one-shot iterator would lose the batch that is looked at here.
        if source is None or self.forward is not None or iter(source) is source:
            return None
        first = next(iter(source), None)
        return None if first is None else inputs_of(first)


def as_call(example: Example | Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`(args, kwargs)` of an example that is a tensor, a tuple or list of inputs, or a mapping of keyword inputs."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if isinstance(example, Tensor):
        return (example,), {}
    raise SpecError(
        f"an example is a tensor, a tuple of inputs or a dict of keyword inputs, not {type(example).__name__}"
    )


def inputs_of(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`(args, kwargs)` of the model's inputs in a batch, labels left out."""
    if isinstance(batch, Mapping):
        return (), {k: v for k, v in batch.items() if k not in ("labels", "label")}
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0:
        return (batch[0],), {}
    return (batch,), {}


def describe(batch: Batch) -> str:
    """Shapes and types of a batch, for messages."""
    if isinstance(batch, Tensor):
        return f"{tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{k}: {describe(v)}" for k, v in batch.items()) + "}"
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return "(" + ", ".join(describe(v) for v in batch) + ")"
    return type(batch).__name__
