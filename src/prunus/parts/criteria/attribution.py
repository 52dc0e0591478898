"""Criteria that ask what units contribute: attribution, Shapley values, roles in a crowd of others."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence.activations import Activation, ActivationGrad
from prunus.parts.evidence.attribution import Attribution
from prunus.parts.evidence.clusters import k_means
from prunus.parts.evidence.propagated import PropagatedImportance
from prunus.parts.evidence.shapley import Shapley


@dataclass(frozen=True)
class AbsoluteAttribution(Criterion):
    """Mean over samples of |DeepLIFT contribution of the unit to the network's decision| (Sabih et al. 2020,
    arXiv:2008.09072).

    Rule and baseline: see `AttributionEvidence`. Shapes: `[units, batch] -> [units]`. Units: outputs; comparable across
    the network. Cost: one forward and backward of each batch and its baseline. Differs: the decision is the largest
    output, the paper's the true class's: a task does not say where its labels are.
    """

    def __call__(self, parts: Attribution) -> Float[Tensor, "units"]:
        return parts.abs().mean(1)


@dataclass(frozen=True)
class ShapleyValue(Criterion):
    """The unit's Shapley value among those of its layer, minus the loss as the value (Chen & Wang 2024,
    arXiv:2408.16772; Ancona et al. 2020), from `permutations` random orders.

    Shapes: `[*units, 1] -> [*units, 1]`. Units: loss; comparable across layers as shares of what removing a whole layer
    costs. Cost: permutations * units forwards per batch and layer.
    """

    permutations: int = 5

    def __post_init__(self) -> None:
        if self.permutations < 1:
            raise SpecError(f"ShapleyValue(permutations={self.permutations}): at least one order")

    def __call__(self, value: Shapley) -> Float[Tensor, "*units 1"]:
        return value


@dataclass(frozen=True)
class NeuronImportance(Criterion):
    """The importance of the final responses propagated back through |W| (NISP: Yu et al. 2018, arXiv:1711.05908).

    `mixing`: how much the spread of the final responses counts in their ranking, against how little they repeat each
    other. Shapes: `[units, 1] -> [units, 1]`. Units: importance of final responses; comparable within a layer. Cost:
    see `PropagatedImportanceEvidence`. Differs: where the paper propagates by hand through each kind of layer, this is
    the gradient in the network of absolute values.
    """

    mixing: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.mixing <= 1.0:
            raise SpecError(f"NeuronImportance(mixing={self.mixing}) is a share, in [0, 1]")

    def __call__(self, importance: PropagatedImportance) -> Float[Tensor, "units 1"]:
        return importance


@dataclass(frozen=True)
class StationaryHead(Criterion):
    """The stationary distribution of a random walk between the units of a layer that goes from i to j with a
    probability in proportion to |cos(a_i, a_j)| (inspired by the head ranking of GOHSP: Yin et al. 2023,
    arXiv:2301.05345).

    a_i is everything that the readers see of a unit in a batch. Units that resemble many others are visited most and
    stay, as representatives. Shapes: `[units, batch, values] -> [units]`. Units: a probability; comparable within a
    layer. Cost: one forward per batch, units^2 products. Differs: the paper's transition probabilities could not be
    verified.
    """

    def __call__(self, a: Activation) -> Float[Tensor, "units"]:
        flat = torch.nn.functional.normalize(a.flatten(1).double(), dim=1)
        alike = (flat @ flat.T).abs().fill_diagonal_(0.0)
        return stationary(alike)


@dataclass(frozen=True)
class FunctionalContribution(Criterion):
    """Units of a layer in clusters by what they respond to; in every cluster the one with the largest contribution
    mean |a dL/da| comes first, then all second ones, and so on (inspired by Qin et al. 2018, arXiv:1810.07322).

    Clusters: k-means of the responses over samples and positions at unit length, from the farthest points, k =
    `clusters` times the number of units, on each batch; scores are averaged over batches. Score: minus the place in the
    own cluster (0 for the first), plus the contribution as a share of the layer's largest, halved. Shapes: `[units,
    batch, values, 2] -> [units]`. Units: places; comparable within a layer. Cost: one forward and backward per batch,
    k-means of the units. Differs: the paper clusters images that maximize each filter's activation.
    """

    clusters: float = 0.5
    train_mode: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.clusters <= 1.0:
            raise SpecError(f"FunctionalContribution(clusters={self.clusters}): a share of the units, in (0, 1]")

    def __call__(self, pair: ActivationGrad) -> Float[Tensor, "units"]:
        a, g = (t.flatten(1).double() for t in pair.unbind(-1))
        worth = (a * g).abs().mean(1)
        k = max(1, round(self.clusters * len(a)))
        return first_of_each(worth, k_means(torch.nn.functional.normalize(a, dim=1), k, int(worth.argmax())))


def first_of_each(worth: Float[Tensor, "n"], cluster: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Minus the place by worth among those of the same cluster, plus worth over twice the largest."""
    score = worth / worth.max().clamp(min=torch.finfo(worth.dtype).tiny) / 2
    places: dict[int, int] = {}
    for unit in worth.argsort(descending=True, stable=True).tolist():
        own = int(cluster[unit])
        score[unit] -= places.get(own, 0)
        places[own] = places.get(own, 0) + 1
    return score


def stationary(weight: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
    """pi with pi P = pi, P the rows of `weight` over their sums; uniform rows where there is nothing to go to."""
    n = len(weight)
    total = weight.sum(1, keepdim=True)
    step = torch.where(total > 0, weight / total.clamp(min=torch.finfo(weight.dtype).tiny), 1.0 / n)
    # A walk that rests half of the time has the same stationary distribution and no period.
    system = torch.cat([(step.T - torch.eye(n, dtype=step.dtype, device=step.device)) / 2, torch.ones_like(step[:1])])
    right = torch.zeros(n + 1, 1, dtype=step.dtype, device=step.device)
    right[-1] = 1.0
    found: Tensor = torch.linalg.pinv(system) @ right
    return found.squeeze(1)
