"""Criteria for the experts of mixtures: by what they add, by how often they are chosen, by who is like them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float

from prunus.core.part import Criterion
from prunus.parts.evidence.routed import ExpertNorm, ExpertTokens, RouterRow


@dataclass(frozen=True)
class RoutedNorm(Criterion):
    """mean over the tokens x that expert j gets of g_j(x) ||f_j(x)||_2 (REAP: Lasby et al. 2025, arXiv:2510.13999,
    section 4): what the output loses, for a token, without the expert. An expert that gets no token scores 0.

    Shapes: `[experts, 1] -> [experts, 1]`. Units: of the mixture's output; compare within a mixture. Cost: a forward
    per batch, no labels. Fails: `NothingScored` where no mixture's output is a sum of g f, see `ExpertNorm`.
    Differs: g is what the output has of f (with any factor that the model puts on routed experts).
    """

    def __call__(self, norm: ExpertNorm) -> Float[torch.Tensor, "*units 1"]:
        return norm


@dataclass(frozen=True)
class RoutedTokens(Criterion):
    """How many calibration tokens an expert gets: the frequency baseline of the field (so in Lasby et al. 2025,
    arXiv:2510.13999, section 5).

    Shapes: `[experts, 1] -> [experts, 1]`. Units: tokens; compare within a mixture. Cost and limits: of `RoutedNorm`.
    """

    def __call__(self, tokens: ExpertTokens) -> Float[torch.Tensor, "*units 1"]:
        return tokens


@dataclass(frozen=True)
class RouterDistance(Criterion):
    """min over the other experts of ||r_i - r_j|| / ||R||_F, r_i an expert's row of the router's weights R: an expert
    next to another one is chosen for the same tokens, and can be spared (the distance of STUN: Lee et al. 2024,
    arXiv:2409.06211, section 4.2).

    Shapes: `[experts, k] -> [experts, 1]`. Units: none; comparable across mixtures. Cost: experts^2, no data.
    """

    def __call__(self, row: RouterRow) -> Float[torch.Tensor, "*units 1"]:
        apart = torch.cdist(row.double(), row.double()) / row.double().norm().clamp(min=1e-300)
        nearest: torch.Tensor = apart.fill_diagonal_(torch.inf).amin(1, keepdim=True)
        return nearest
