"""Weights that stay make up for those that go in the loss, by the inverse of its Fisher information."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.part import Reconstruction
from prunus.parts.evidence.fisher import InverseFisherMatrixEvidence

PIECE = 1 << 22
"""Numbers of small matrices that are worked on at once."""


@dataclass(frozen=True)
class FisherUpdate(Reconstruction):
    """w - sum over the units Q that go of F^-1 E_Q ([F^-1]_QQ)^-1 w_Q: the optimal brain surgeon's update, F the damped
    Fisher information in blocks of `block` consecutive weights (single weights: WoodFisher, Singh & Alistarh 2020,
    arXiv:2004.14340; blocks of weights: oBERT, Kurtic et al. 2022, arXiv:2203.07259, eq. 5).

    Units that go at once are each taken as if they went alone, and their updates are summed, as in both. Shapes: `[n],
    [units, k], [units], [blocks, b, b] -> [n]`. Cost: one backward per batch, `block` numbers per weight, one inversion
    of every block, k^3 per unit that goes.
    Differs: evidence is gathered anew for it, on all calibration samples, so an event costs twice what scoring does;
    nothing is added to [F^-1]_ii, where the code adds a number against division by zero.
    """

    block: int = 50
    damp: float = 1e-5

    def __post_init__(self) -> None:
        if self.block < 1 or not self.damp > 0:
            raise SpecError(f"{self}: blocks of at least one weight, and a damping above 0")

    def asks(self) -> Mapping[str, Evidence]:
        return {"inverse": InverseFisherMatrixEvidence()}

    def moved(
        self, w: Float[Tensor, "n"], at: Int[Tensor, "units k"], gone: Bool[Tensor, "units"], **evidence: Any
    ) -> Float[Tensor, "n"]:
        inverse: Tensor = evidence["inverse"]
        count, size, _ = inverse.shape
        pull = w.new_zeros(count * size)
        for some in at[gone].split(max(1, PIECE // at.shape[1] ** 2)):
            which, inside = some // size, some % size
            # Of a unit in several blocks, each part by itself: the inverse is zero between them.
            own = inverse[which[:, :, None], inside[:, :, None], inside[:, None, :]]
            own = own * (which[:, :, None] == which[:, None, :])
            pull[some] = torch.linalg.solve(own, w[some].unsqueeze(-1)).squeeze(-1)
        return w - torch.bmm(inverse, pull.reshape(count, size, 1)).flatten()[: len(w)]
