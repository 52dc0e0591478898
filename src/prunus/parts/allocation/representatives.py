"""Allocations that choose units for what they are together: another one says how many stay of each layer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.counting import count
from prunus.core.errors import SpecError
from prunus.core.evidence import Evidence
from prunus.core.part import Allocation, Masks, Scores, Space
from prunus.parts.allocation.constraints import best_of
from prunus.parts.allocation.ranking import Uniform
from prunus.parts.allocation.wrapped import Around
from prunus.parts.evidence.contributions import ConstantContributionsEvidence, FeatureGramEvidence


class Chosen(Around, ABC):
    """`of` says how many units of a layer stay, `choose` which; layers without the evidence keep what `of` keeps."""

    evidence: ClassVar[Evidence]

    def asks(self) -> Mapping[str, Evidence]:
        return {**self.of.asks(), "between": self.evidence}

    @abstractmethod
    def choose(self, between: Float[Tensor, "n n"], scores: Float[Tensor, "n"], k: int) -> Int[Tensor, "chosen"]:
        """At most k of n units; they stay, and the best of the others fill up to k."""

    def __call__(
        self, scores: Scores, density: float, space: Space, *, between: Mapping[str, Tensor], **given: Any
    ) -> Masks:
        masks = dict(self.of(scores, density, space, **given))
        for name in [n for n in masks if n in between]:
            flat = scores[name].reshape(-1).double()
            alive = (flat > -torch.inf).nonzero().squeeze(1)
            k = count(masks[name])
            if not 0 < k < len(alive):
                continue
            first = alive[self.choose(between[name][alive][:, alive], flat[alive], k)]
            # The chosen ones before all others, each part in the order of the scores.
            place = flat.argsort(descending=True, stable=True).argsort().double()
            ranks = (2 * len(flat) - place).masked_fill(flat == -torch.inf, -torch.inf)
            ranks[first] += 2 * len(flat)
            masks[name] = best_of(space[name], ranks.reshape(scores[name].shape), k)
        return masks


@dataclass(frozen=True)
class SparseRecovery(Chosen):
    """The k units of a layer that i-SpaSP ends with (Wolfe & Kyrillidis 2022, arXiv:2112.04905, algorithm 1): CoSaMP on
    the readers' outputs.

    From the empty set S, `rounds` times: y = what a constant added to each unit would do to half the squared residual
    of the readers' outputs when only S is left; join the 2k largest y to S; keep the k with the highest scores of that
    (the paper's scores are the units' summed activations). Cost: one forward per batch, then rounds units^2 per layer.
    Differs: outputs are taken before the normalization that follows the reader, which the official code includes.
    """

    of: Allocation = Uniform()
    rounds: int = 20
    evidence: ClassVar[Evidence] = ConstantContributionsEvidence()

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise SpecError(f"SparseRecovery(rounds={self.rounds}): at least one round")

    def choose(self, between: Float[Tensor, "n n"], scores: Float[Tensor, "n"], k: int) -> Int[Tensor, "chosen"]:
        chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        for _ in range(self.rounds):
            pull = between[:, ~chosen].sum(1)
            chosen[pull.argsort(descending=True, stable=True)[: 2 * k]] = True
            best = scores.masked_fill(~chosen, -torch.inf).argsort(descending=True, stable=True)[:k]
            chosen = torch.zeros_like(chosen)
            chosen[best] = True
        return chosen.nonzero().squeeze(1)


@dataclass(frozen=True)
class SubspaceClusters(Chosen):
    """One unit from each of k clusters of feature maps that span each other (Wang et al. 2018, arXiv:1803.05729).

    Sparse subspace clustering (Elhamifar & Vidal 2013, arXiv:1203.1005): every unit's map, at unit length, as a sparse
    combination of the others', min ||c||_1 + weight/2 ||x_j - X c||^2, weight = `alpha` over the least of the largest
    products of a map with another; then spectral clustering of |C| + |C|'. The unit with the highest score represents
    its cluster. Cost: one forward per batch, then `steps` units^3 per layer.
    Differs: k-means starts from the farthest points instead of at random, so that nothing is drawn.
    """

    of: Allocation = Uniform()
    alpha: float = 20.0
    steps: int = 200
    evidence: ClassVar[Evidence] = FeatureGramEvidence()

    def __post_init__(self) -> None:
        if self.alpha <= 1 or self.steps < 1:
            raise SpecError(f"SubspaceClusters(alpha={self.alpha}, steps={self.steps}): alpha > 1, one step or more")

    def choose(self, between: Float[Tensor, "n n"], scores: Float[Tensor, "n"], k: int) -> Int[Tensor, "chosen"]:
        length = between.diagonal().clamp(min=torch.finfo(between.dtype).tiny).sqrt()
        c = sparse_codes(between / length / length.unsqueeze(1), self.alpha, self.steps)
        cluster = spectral_clusters(c.abs() + c.abs().T, scores, k)
        best = [(cluster == i).nonzero().squeeze(1) for i in cluster.unique().tolist()]
        return torch.stack([inside[scores[inside].argmax()] for inside in best])


def sparse_codes(gram: Float[Tensor, "n n"], alpha: float, steps: int) -> Float[Tensor, "n n"]:
    """Column j: the sparse combination of the other columns that makes column j, by ADMM as in the paper."""
    others = gram.abs() - torch.diag(gram.diagonal().abs())
    largest = others.amax(0)
    least = float(largest[largest > 0].amin()) if bool((largest > 0).any()) else 1.0
    weight, rho = alpha / least, alpha
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(weight * gram + rho * eye)
    c, dual = torch.zeros_like(gram), torch.zeros_like(gram)
    for _ in range(steps):
        z = torch.cholesky_solve(weight * gram + rho * c - dual, factor)
        raised = z + dual / rho
        c = raised.sign() * (raised.abs() - 1 / rho).clamp(min=0)
        c.fill_diagonal_(0)
        dual += rho * (z - c)
    return c


def spectral_clusters(affinity: Float[Tensor, "n n"], scores: Float[Tensor, "n"], k: int) -> Int[Tensor, "n"]:
    """Normalized spectral clustering (Ng et al. 2002), k-means from the farthest points, the best unit first."""
    degree = affinity.sum(1)
    root = torch.where(degree > 0, degree, 1.0).rsqrt()
    vectors = torch.linalg.eigh(root.unsqueeze(1) * affinity * root).eigenvectors[:, -k:]
    points = torch.nn.functional.normalize(vectors, dim=1)
    centers = points[scores.argmax()].unsqueeze(0)
    for _ in range(k - 1):
        far = torch.cdist(points, centers).amin(1)
        centers = torch.cat([centers, points[far.argmax()].unsqueeze(0)])
    cluster = torch.cdist(points, centers).argmin(1)
    for _ in range(100):
        means = [points[cluster == i].mean(0) if bool((cluster == i).any()) else centers[i] for i in range(k)]
        centers = torch.stack(means)
        moved = torch.cdist(points, centers).argmin(1)
        if torch.equal(moved, cluster):
            break
        cluster = moved
    return cluster
