"""How much layers tell about each other: Gram matrices of their features on one batch."""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.evidence import Evidence, GroupTensors, Sources
from prunus.parts.evidence.capture import by_unit, captured, consumers


class FeatureGramEvidence(Evidence):
    """`[batch, batch]`: inner products of the samples' features of a group, centred; float64.

    The features are what the first reader of the group sees of its units (after normalization and nonlinearity), all
    units and positions, on the first calibration batch. Undefined where no reader is seen. Cost: one forward.
    """

    reads: ClassVar[Literal["inputs"]] = "inputs"
    passes = "one forward of one batch"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        names = dict.fromkeys(m.param for g in sources.groups for m in g.with_role("in"))
        uses = next(iter(captured(sources, names)))
        grams: dict[str, Tensor] = {}
        for group in sources.groups:
            read = consumers(group, uses)
            if read:
                member, use = read[0]
                features = by_unit(group, member, use.by_channel(use.x)).double().transpose(0, 1).flatten(1)
                grams[group.name] = centred(features @ features.T)
        yield grams


def centred(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The Gram matrix of the same features with their mean over samples taken off."""
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def nhsic(one: Float[Tensor, "n n"], other: Float[Tensor, "n n"]) -> float:
    """HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) of two centred Gram matrices (linear kernel), in [0, 1]; 0 where one of
    them does not vary.
    """
    scale = torch.linalg.matrix_norm(one) * torch.linalg.matrix_norm(other)
    return float((one * other).sum() / scale) if float(scale) > 0 else 0.0
