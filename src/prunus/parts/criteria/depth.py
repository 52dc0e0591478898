"""Criteria for whole blocks: what they do to the hidden state."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.criteria.attribution import first_of_each
from prunus.parts.evidence.consecutive import Consecutive
from prunus.parts.evidence.flow import SynapticFlow
from prunus.parts.evidence.hidden import HiddenStates


@dataclass(frozen=True)
class BlockInfluence(Criterion):
    """1 - E cos(x_l, x_{l+1}) over tokens: how far a block turns the hidden state (BI of ShortGPT: Men et al. 2024,
    arXiv:2403.03853, eq. 1).

    `angular=True`: arccos(cos) / pi instead, the distance of Gromov et al. 2024 (arXiv:2403.17887) for one layer.
    Shapes: `[units, batch, tokens, features, 2] -> [units]`. Units: none, in [0, 2] ([0, 1]); comparable across the
    network. Cost: one forward per batch. Fails: undefined for units that are no whole modules (`Block`, `Branch`).
    """

    angular: bool = False

    def __call__(self, states: HiddenStates) -> Float[Tensor, "units"]:
        return token_distance(states, "angular" if self.angular else "cosine")


@dataclass(frozen=True)
class ResidualNorm(Criterion):
    """The mean over tokens of ||F(x)|| / ||x||, F(x) what a branch or block adds to x: how far it is from the identity
    (the function norm of the identity prior: Lin et al. 2020, arXiv:2010.01791).

    Norms over features: the largest entry, or Euclidean. Shapes: `[units, batch, tokens, features, 2] -> [units]`.
    Units: none; comparable across the network. Cost: one forward per batch. Fails: undefined for units that are no
    whole modules.
    """

    norm: Literal["max", "euclidean"] = "max"

    def __post_init__(self) -> None:
        if self.norm not in ("max", "euclidean"):
            raise SpecError(f"ResidualNorm(norm={self.norm!r}): 'max' or 'euclidean'")

    def __call__(self, states: HiddenStates) -> Float[Tensor, "units"]:
        x, y = states.double().unbind(-1)
        order = math.inf if self.norm == "max" else 2
        size = torch.linalg.vector_norm(x, order, dim=-1)
        there = size > 0  # tokens that only other units have are padded with zeros
        ratio = torch.linalg.vector_norm(y - x, order, dim=-1) / size.masked_fill(~there, 1.0)
        mean: Tensor = (ratio * there).sum((1, 2)) / there.sum((1, 2)).clamp(min=1)
        return mean


@dataclass(frozen=True)
class ConsecutiveInfluence(Criterion):
    """The consecutive blocks between whose first input and last output the hidden state turns least go together
    (LLM-Streamline: Chen et al. 2024, arXiv:2403.19135, section 3.1; with `angular=True, tokens="last"` the
    distance arccos(cos) / pi at the last token of Gromov et al. 2024, arXiv:2403.17887).

    As many as the event removes of the container. Shapes: `[*units, 1] -> [*units, 1]`. Units: 0 for these, more than 1
    for the others. Cost: one forward per batch. Fails: undefined for units that are no whole modules.
    """

    angular: bool = False
    tokens: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        if self.tokens not in ("all", "last"):
            raise SpecError(f"ConsecutiveInfluence(tokens={self.tokens!r}): 'all' or the 'last' one of every sample")

    def __call__(self, together: Consecutive) -> Float[Tensor, "*units 1"]:
        return together


@dataclass(frozen=True)
class SegmentedFlow(Criterion):
    """Consecutive blocks in segments of alike representations; in every segment the block with the largest synaptic
    flow comes first, then all second ones, and so on (inspired by Lu et al. 2024, arXiv:2406.07929).

    Segments: Fisher's optimal segmentation, by dynamic programming, of a group into `segments` times its number of
    blocks, so that the sum over segments of (the sum of 1 - CKA over pairs in it) / (its length) is least; linear CKA
    (Kornblith et al. 2019, arXiv:1905.00414) of what blocks put out, averaged over tokens, on the samples of a batch.
    Flow: sum of |w dR/dw| over the block's weights, see `SynapticSaliency`. Scores as in `FunctionalContribution`,
    averaged over batches. Shapes: `[units, batch, tokens, features, 2]`, `[units, k] -> [units]`. Units: places;
    comparable within a group. Cost: one forward per batch; that of synaptic flow. Differs: the paper chooses layers
    of a segment by the synaptic flow of the networks that they would leave.
    """

    segments: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.segments <= 1.0:
            raise SpecError(f"SegmentedFlow(segments={self.segments}): a share of the blocks, in (0, 1]")

    def __call__(self, states: HiddenStates, flow: SynapticFlow) -> Float[Tensor, "units"]:
        apart = 1 - cka(states[..., 1].double().mean(2))
        return first_of_each(flow.double().abs().sum(-1), cut(apart, max(1, round(self.segments * len(apart)))))


def cka(features: Float[Tensor, "units samples features"]) -> Float[Tensor, "units units"]:
    """Linear centred kernel alignment of every pair; 0 with features that do not vary."""
    centred = features - features.mean(1, keepdim=True)
    grams = torch.nn.functional.normalize((centred @ centred.transpose(1, 2)).flatten(1), dim=1)
    return grams @ grams.T


def cut(apart: Float[Tensor, "n n"], count: int) -> Int[Tensor, "n"]:
    """The segment of every item: consecutive items in `count` segments of least cost, by dynamic programming.

    The cost of a segment is the sum of `apart` over ordered pairs in it over its length. Ties to the earliest cut.
    """
    n = len(apart)
    cost = {(i, j): float(apart[i:j, i:j].sum()) / (j - i) for i in range(n) for j in range(i + 1, n + 1)}
    best: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [])}]
    for _ in range(count):
        ends: dict[int, tuple[float, list[int]]] = {}
        for i, (paid, cuts) in best[-1].items():
            for j in range(i + 1, n + 1):
                if j not in ends or paid + cost[i, j] < ends[j][0]:
                    ends[j] = (paid + cost[i, j], [*cuts, j])
        best.append(ends)
    segment = torch.zeros(n, dtype=torch.long, device=apart.device)
    for end in best[-1][n][1][:-1]:
        segment[end:] += 1
    return segment


def token_distance(
    states: Float[Tensor, "units batch tokens features 2"], by: Literal["cosine", "angular"]
) -> Float[Tensor, "units"]:
    """The mean distance of the two states over all tokens that there are."""
    x, y = states.double().unbind(-1)
    norms = x.norm(dim=-1) * y.norm(dim=-1)
    cosine = ((x * y).sum(-1) / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(-1.0, 1.0)
    # A token that only one side has has no direction on the other: nothing is left of it.
    there = (x != 0).any(-1) | (y != 0).any(-1)
    distance = 1 - cosine if by == "cosine" else cosine.arccos() / torch.pi
    mean: Tensor = (distance * there).sum((1, 2)) / there.sum((1, 2)).clamp(min=1)
    return mean
