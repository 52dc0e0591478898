"""Penalties on normalization scales."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.core.errors import SpecError
from prunus.core.part import Penalty
from prunus.parts.evidence import AliveCost, FedScale, Scale, Weight


@dataclass(frozen=True)
class ScaleL1(Penalty):
    """strength * sum |gamma|: sparse normalization scales (Network Slimming: Liu et al. 2017, arXiv:1708.06519, eq. 1).

    `strength` is 1e-4 for VGG and 1e-5 for ResNet and DenseNet in the paper. Its (sub)gradient, strength *
    sign(gamma), is added to the loss's before every optimizer step until the network is pruned. Undefined on groups
    without a normalization.
    """

    strength: float = 1e-4
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"ScaleL1(strength={self.strength}) must not be negative")

    def __call__(self, gamma: Scale) -> Float[Tensor, ""]:
        return self.strength * gamma.abs().sum()


@dataclass(frozen=True)
class StrengthL1(Penalty):
    """strength * sum |gamma_i| ||K_ki||: sparse synaptic strengths (Lin et al. 2018, NeurIPS, arXiv:1811.02454), with
    gamma the scale of the normalization before the weight.

    Shapes: gamma and w `[*units, k]`, equal along k where a unit reads one channel. Undefined on weights that no
    normalization feeds. Cost: one norm per unit; one traced run of the example, once.
    """

    strength: float = 1e-4
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise SpecError(f"StrengthL1(strength={self.strength}) must not be negative")

    def __call__(self, gamma: FedScale, w: Weight) -> Float[Tensor, ""]:
        total: Tensor = self.strength * torch.linalg.vector_norm(gamma * w, dim=-1).sum()
        return total


@dataclass(frozen=True)
class ResourceL1(Penalty):
    """strength * sum of |gamma| times what removing the unit saves: the network's cost as its scales tell it (MorphNet:
    Gordon et al. 2018, CVPR, arXiv:1711.06798).

    A layer that costs C per pair of channels adds C (sum_in |gamma| #alive_out + #alive_in sum_out |gamma|), which is
    every |gamma| times C and the number of live channels on the other side of all weights of the unit. Alive is what
    has a |gamma| above `threshold`. Of coupled normalizations (residual sums) the largest scale counts, as in the
    official code. Shapes: gamma `[units, n]`, cost `[units, 1]`. Undefined without a normalization.

    Differs: cost is a share of the dense network's, so that strengths do not hang on its size (the official README
    advises about 1 / (initial cost)); what is alive is counted every `every` steps, the official code does at each.

    Attributes:
        currency: "macs" (FLOPs but for a factor), "params" or "memory" (activations).
    """

    strength: float = 1.0
    currency: Literal["macs", "params", "memory"] = "macs"
    threshold: float = 1e-2
    every: int = 20
    lasts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.threshold >= 0 and self.every >= 1):
            raise SpecError(f"{self}: strength and threshold not negative, every >= 1")
        if self.currency not in ("macs", "params", "memory"):
            raise SpecError(f"ResourceL1(currency={self.currency!r}): macs, params or memory")

    def __call__(self, gamma: Scale, cost: AliveCost) -> Float[Tensor, ""]:
        return self.strength * (gamma.abs().amax(-1) * cost.squeeze(-1)).sum()
