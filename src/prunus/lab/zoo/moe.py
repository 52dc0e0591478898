"""A small decoder whose MLPs are mixtures of experts.

Sources: Shazeer et al. 2017, ICLR, arXiv:1701.06538, equations 1 and 3 (without the noise); the softmax is over the
k chosen router logits, as in Jiang et al. 2024 (Mixtral), arXiv:2401.04088, section 2.1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.lab.zoo.attention import FeedForward
from prunus.lab.zoo.gpt import Decoder


class MixtureOfExperts(nn.Module):
    """Each token goes to the `k` experts its router ranks highest, weighted by the router's softmax.

    Every expert is run on every token and multiplied by a weight that is zero where it was not chosen. That costs
    `experts / k` times what a gathering implementation does, and the values are the same; in exchange no shape depends
    on the data, which makes the network traceable.
    """

    def __init__(self, dim: int, hidden: int, experts: int, k: int) -> None:
        super().__init__()
        if not 1 <= k <= experts:
            raise SpecError(f"cannot route to {k} of {experts} experts: k must lie between 1 and the number of experts")
        self.k = k
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(dim, hidden) for _ in range(experts))

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        logits = self.router(x)
        best, chosen = logits.topk(self.k, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, chosen, best.softmax(-1))
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            y = y + gates[..., index : index + 1] * expert(x)
        return y


def moe_tiny(
    *,
    vocabulary: int = 256,
    size: int = 64,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    hidden: int = 128,
    experts: int = 4,
    k: int = 2,
    fused: bool = False,
    tied: bool = False,
) -> Decoder:
    """`gpt_tiny` with `experts` MLPs of `hidden` units per block, of which each token uses `k`.

    Raises:
        SpecError: `heads` does not divide `dim`, `k` is not between 1 and `experts`, or fewer than one block.
    """
    if depth < 1:
        raise SpecError(f"depth must be at least 1, not {depth}")
    return Decoder(
        vocabulary=vocabulary,
        length=size,
        dim=dim,
        depth=depth,
        heads=heads,
        make_mlp=lambda: MixtureOfExperts(dim, hidden, experts, k),
        fused=fused,
        tied=tied,
    )
