"""Top-k accuracy with its rules written down: ties, NaN, ignored labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError
from prunus.measure.inputs import as_found, device_of, moved, run

IGNORED = -100  # PyTorch's own `ignore_index` of cross-entropy: padding, not an example


def hits(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], top: int) -> Bool[Tensor, " n"]:
    """Whether the label is among the `top` highest logits: True where fewer than `top` classes come before it.

    Equal logits are ordered by class index, so a network whose outputs are all equal answers class 0 everywhere.
    A row that holds NaN is a miss.
    """
    own = logits.gather(1, labels[:, None])
    index = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (index[None] < labels[:, None]))
    return (before.sum(1) < top) & ~logits.isnan().any(1)


def _split(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and labels of one batch: `(input, ..., labels)`, or a dict with `labels` or `label`."""
    if isinstance(batch, Mapping):
        for key in ("labels", "label"):
            if key in batch:
                return {k: v for k, v in batch.items() if k != key}, batch[key]
        raise DataError(f"batch has the keys {sorted(batch)} and none of them is 'labels': accuracy needs the classes")
    if isinstance(batch, Sequence) and len(batch) >= 2 and isinstance(batch[-1], Tensor):
        return tuple(batch[:-1]), batch[-1]
    raise DataError(f"batch is a {type(batch).__name__}: accuracy needs (inputs, labels) or a dict with 'labels'")


def _logits(output: Any) -> Tensor:
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("logits")
    if not isinstance(found, Tensor):
        raise DataError(f"model returned a {type(output).__name__}: accuracy needs a tensor of logits or `.logits`")
    return found


def _checked(logits: Tensor, labels: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Logits `[n, classes]` and integer labels `[n]` without the ignored ones."""
    if logits.dim() < 2 or logits.shape[:-1] != labels.shape:
        raise DataError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} do not fit: labels need one class index for "
            "every row of logits, with the classes in the last dimension"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"labels are {labels.dtype}: accuracy needs class indices")
    classes = logits.shape[-1]
    if top > classes:
        raise SpecError(f"top-{top} of {classes} classes: every answer would count as right")
    logits, labels = logits.reshape(-1, classes), labels.reshape(-1).long()
    kept = labels != IGNORED
    logits, labels = logits[kept], labels[kept]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"labels run from {int(labels.min())} to {int(labels.max())}, the model has {classes} classes")
    return logits, labels


def accuracies(model: nn.Module, batches: Iterable[Any], *, top: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Top-k accuracy for several k in one pass over the data: `{k: fraction of examples in [0, 1]}`.

    A batch is `(inputs, labels)` or a dict with `labels`; the model returns logits `[..., classes]` (or an object with
    `.logits`) for labels `[...]`. Labels of -100 are skipped. Batches are moved to the model's device.
    The model runs in evaluation mode without gradients and is left as found, also after an exception.

    Raises `DataError` for no examples and for outputs or labels that do not fit, `SpecError` for k < 1 or k > classes.
    """
    if not top or min(top) < 1:
        raise SpecError(f"top={tuple(top)}: need at least one k, each 1 or more")
    device = device_of(model, ())
    right = dict.fromkeys(top, 0)
    seen = 0
    with as_found(model, device):
        for batch in batches:
            inputs, labels = _split(batch)
            args, kwargs = moved(inputs, device)
            logits, labels = _checked(_logits(run(model, args, kwargs)), labels.to(device), max(top))
            seen += len(labels)
            for k in right:
                right[k] += int(hits(logits.float(), labels, k).sum())
    if not seen:
        raise DataError("no labelled example in the batches: accuracy of nothing is undefined (a used-up iterator?)")
    return {k: n / seen for k, n in right.items()}


def accuracy(model: nn.Module, batches: Iterable[Any], *, top: int = 1) -> float:
    """Top-`top` accuracy of a classifier: the fraction of examples, 0 to 1. See `accuracies` for the rules."""
    return accuracies(model, batches, top=(top,))[top]
