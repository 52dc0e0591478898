"""How well a linear classifier tells the classes from the hidden state before and after each block."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.core.errors import DataError, SpecError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.task import describe
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.hidden import HiddenStatesEvidence


class ProbeAccuracyEvidence(Evidence):
    """The accuracy of a ridge classifier on the mean over tokens (or positions) of the state before and after a block,
    each calibration sample judged by the classifier that was fitted without it.

    Labels are the second entry of a batch, or its `labels` or `label`: one class per sample. The asking part's `ridge`
    is relative to the mean square of the features. Undefined where `HiddenStates` is. Cost: one forward per batch, the
    states of all blocks of a batch in memory at once, and features^3 / 3 per block and side.
    """

    reads: ClassVar[Reads] = "labels"
    passes = "one forward per batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        batches = list(sources.task.calibration())
        if not batches:
            raise DataError(NO_BATCH)
        labels = torch.cat([classes_of(batch) for batch in batches])
        features: dict[str, list[Tensor]] = {}
        for states in HiddenStatesEvidence().collect(replace(sources, task=replace(sources.task, calib=batches))):
            for name, s in states.items():
                there = (s != 0).any(-1).any(-1).sum(-1).clamp(min=1)  # tokens that are no padding
                features.setdefault(name, []).append(s.double().sum(2) / there[..., None, None])
        ridge = float(sources.settings.get("ridge", 1e-3))
        found: dict[str, Tensor] = {}
        for name, parts in features.items():
            joined = torch.cat(parts, 1)  # [units, samples, features, 2]
            if joined.shape[1] == len(labels):
                rows = [[hits(u[..., side], labels, ridge).double().mean() for side in (0, 1)] for u in joined]
                found[name] = torch.tensor(rows, dtype=torch.float64, device=joined.device)
        yield found


def hits(x: Float[Tensor, "n d"], labels: Int[Tensor, "n"], ridge: float) -> Bool[Tensor, "n"]:
    """Which samples the ridge classifier of all others classifies rightly, in closed form from the hat matrix."""
    n = len(x)
    y = torch.nn.functional.one_hot(labels.to(x.device).unique(return_inverse=True)[1]).to(x.dtype)
    x = torch.cat([x - x.mean(0), x.new_ones(n, 1)], 1)
    gram = x.T @ x
    damp = ridge * gram.diagonal()[:-1].mean().clamp(min=torch.finfo(x.dtype).tiny) * torch.ones_like(gram[0])
    damp[-1] = 0  # the intercept is free
    hat = x @ torch.linalg.solve(gram + torch.diag(damp), x.T)
    own = hat.diagonal().unsqueeze(1)
    without = (hat @ y - own * y) / (1 - own).clamp(min=1e-12)
    right: Tensor = without.argmax(1) == y.argmax(1)
    return right


def classes_of(batch: Any) -> Int[Tensor, "n"]:
    """The classes in a batch. Errors: `SpecError` where there is not one whole number per sample."""
    found = batch.get("labels", batch.get("label")) if isinstance(batch, Mapping) else None
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1:
        found = batch[1]
    if not isinstance(found, Tensor) or found.ndim != 1 or found.is_floating_point():
        raise SpecError(
            f"a probe needs one class per sample, as the second entry of a batch or under 'labels'; got "
            f"{describe(batch)}"
        )
    return found


ProbeAccuracy = Annotated[Float[Tensor, "*units 2"], ProbeAccuracyEvidence()]
"""`[units, 2]`: how often a linear classifier is right on the state before and after each block."""
