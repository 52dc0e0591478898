"""Criteria that look at both sides of a unit: the weights that make it and the weights that read it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Criterion
from prunus.parts.evidence import CoupledWeight, Noise, OutgoingKernels, OutgoingWeight, Scale, Shift, Weight


@dataclass(frozen=True)
class BothSides(Criterion):
    """||w_out|| + ||w_in||: the norm of a filter plus that of its slices in the next layers (the filter selection of
    multi-layer pruning, Singh et al. 2018, arXiv:1811.08342).

    Shapes: `[units, k], [units, j] -> [units]`. Units: those of the weights; comparable within a layer. Undefined where
    nothing reads a unit, and for single weights. Cost: one pass over the weights. `order` is that of the norms.
    """

    order: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise SpecError(f"BothSides(order={self.order}): norms are of order 1 or 2")

    def __call__(self, w: Weight, out: OutgoingWeight) -> Float[Tensor, "units"]:
        norm: Tensor = torch.linalg.vector_norm(w, self.order, dim=-1)
        other: Tensor = torch.linalg.vector_norm(out, self.order, dim=-1)
        return norm + other


@dataclass(frozen=True)
class OutInEnergy(Criterion):
    """||w_out||^2 + ||w_in||^2: the energy of out-channel i of a layer together with in-channel i of the next (OICSR:
    Li et al. 2019, arXiv:1905.11664).

    Shapes: `[units, k], [units, j] -> [units]`. Units: squared weights; compared across layers by the paper. Undefined
    where nothing reads a unit, and for single weights. Cost: one pass over the weights.
    """

    def __call__(self, w: Weight, out: OutgoingWeight) -> Float[Tensor, "units"]:
        return w.square().sum(-1) + out.square().sum(-1)


@dataclass(frozen=True)
class ReaderEnergy(Criterion):
    """||w_in||^2: the energy of what reads a unit, its input channels in the next layers (what ECC holds to zero: Yang,
    Zhu & Liu 2019, arXiv:1812.01803).

    Shapes: `[units, j] -> [units]`. Units: squared weights; comparable within a layer. Undefined where nothing reads a
    unit, and for single weights. Cost: one pass over the weights.
    """

    def __call__(self, out: OutgoingWeight) -> Float[Tensor, "units"]:
        return out.square().sum(-1)


@dataclass(frozen=True)
class GroupNorm(Criterion):
    """sum of w^2 over everything that goes with a unit, wherever it lies (DepGraph: Fang et al. 2023, arXiv:2301.12900,
    section 3.3).

    Shapes: `[*units, k] -> [*units]`. Units: squared weights, more of them in larger groups; comparable within a group,
    across groups after division by the group's mean. Cost: one pass over the weights. Differs: all weights count alike,
    where the released code averages over the layers of a group.
    """

    def __call__(self, w: CoupledWeight) -> Float[Tensor, "*units"]:
        return w.square().sum(-1)


@dataclass(frozen=True)
class KernelSparsityEntropy(Criterion):
    """sqrt(s / (1 + alpha e)) of the kernels that read a channel: s = sum |K|_1 says how much they weigh, e, the
    entropy of how far each lies from its nearest others, how alike they are (KSE: Li et al. 2019, arXiv:1812.04368).

    s and e are scaled to [0, 1] within the layer, and so is the result. d_n is the sum of the distances of kernel n to
    its `neighbours` nearest, e = -sum d_n/D log2(d_n/D) with D = sum d_n. Shapes: `[units, outputs, taps] -> [units]`.
    Units: none; in [0, 1] in every layer, compared across layers by the paper. Undefined where nothing reads a unit.
    Cost: outputs^2 distances per unit. Differs: the released code reshapes `[in, out]` to `[out, in]` without
    transposing before the entropy, so it mixes channels where the two differ; here every channel has its own kernels.
    """

    alpha: float = 1.0
    neighbours: int = 5

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.neighbours < 1:
            raise SpecError(f"{self}: alpha at least 0, neighbours at least 1")

    def __call__(self, kernels: OutgoingKernels) -> Float[Tensor, "units"]:
        wide = kernels.double()
        sparsity = wide.abs().sum((1, 2))
        # One distance matrix at a time: those of all channels together may not fit.
        entropy = torch.stack([self.entropy(one) for one in wide])
        return unit_range((unit_range(sparsity) / (1 + self.alpha * unit_range(entropy))).sqrt())

    def entropy(self, kernels: Float[Tensor, "outputs taps"]) -> Float[Tensor, ""]:
        """How evenly the kernels of one channel are spread, in bits."""
        near = min(self.neighbours, len(kernels) - 1)
        if near < 1:
            return kernels.new_zeros(())
        apart = torch.cdist(kernels[None], kernels[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
        distance = apart.sort(1).values[:, 1 : near + 1].sum(1)  # the nearest is the kernel itself
        share = distance / distance.sum().clamp(min=torch.finfo(distance.dtype).tiny)
        spread: Tensor = -torch.special.xlogy(share, share).sum() / math.log(2)
        return spread


@dataclass(frozen=True)
class FeatureShift(Criterion):
    """E[relu(z)] mean_j |sum of K_ji|, z ~ N(beta_i, gamma_i^2): how far the next layer's outputs move on average when
    channel i goes (FSM: Duan et al. 2022, arXiv:2207.02632, section 3).

    What a batch normalization puts out is taken for normal with its own shift and scale, so that
    E[relu(z)] = beta Phi(beta/|gamma|) + |gamma| phi(beta/|gamma|) needs no data. Of several coupled normalizations
    (residual sums) means and variances add. Shapes: `[units, n], [units, m], [units, outputs, taps] -> [units]`.
    Undefined without a normalization that has a shift, or without a reader; not meant for layer normalization.
    Units: outputs of the next layer before its normalization; comparable within a layer. Cost: one pass over the
    weights. Differs: the released code sets a negative gamma to 1e-5, here its magnitude counts, as the distribution is
    the same; several readers count as one layer, where the code averages or adds them.
    """

    def __call__(self, gamma: Scale, beta: Shift, kernels: OutgoingKernels) -> Float[Tensor, "units"]:
        mean = relu_of_normal(beta.double().sum(-1), gamma.double().square().sum(-1).sqrt())
        return mean * kernels.double().sum(-1).abs().mean(-1)


@dataclass(frozen=True)
class CoresetSampling(Criterion):
    """A sample of neurons with probability in proportion to max_j |w_ji| phi(beta ||a_i||): the largest share that a
    neuron can have in any output of the next layer, for any input up to norm beta (Mussay et al. 2020,
    arXiv:1907.04018; phi = relu).

    Score: log p_i + Gumbel noise, whose k largest are k draws without replacement. Shapes:
    `[units, k], [units, j] -> [units]`. Units: none; a layer's own. Undefined where nothing reads a unit. Cost: one
    pass over the weights. Differs: the paper draws with replacement and divides what stays by its probability; here the
    count is exact and the weights are left to fine-tuning. A constant beta scales all sensitivities alike where phi
    is relu, so it is left out.
    """

    def __call__(self, w: Weight, out: OutgoingWeight, u: Noise) -> Float[Tensor, "units"]:
        norm: Tensor = torch.linalg.vector_norm(w, dim=-1)
        sensitivity = out.abs().amax(-1).double() * norm.double()
        tiny = torch.finfo(torch.float64).tiny
        share = sensitivity.clamp(min=tiny) / sensitivity.sum().clamp(min=tiny)
        noise = u.double().squeeze(-1).clamp(min=tiny, max=1 - 1e-16)
        return share.log() - (-noise.log()).log()


def unit_range(values: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    """Scaled to [0, 1] from the smallest to the largest; ones where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.ones_like(values)


def relu_of_normal(mean: Float[Tensor, "units"], deviation: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    """E[max(z, 0)] of z ~ N(mean, deviation^2)."""
    ratio = mean / deviation.clamp(min=torch.finfo(mean.dtype).tiny)
    density = (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    expected: Tensor = mean * torch.special.ndtr(ratio) + deviation * density
    return expected
