"""Penalties: a term added to the loss in training that drives units towards zero."""

from prunus.parts.penalty.centripetal import Centripetal
from prunus.parts.penalty.makers import SilentLasso
from prunus.parts.penalty.norms import (
    CoupledLasso,
    ExponentialBias,
    GroupLasso,
    GuidedLasso,
    HyperbolicBias,
    SidesLasso,
)
from prunus.parts.penalty.phases import TockL1
from prunus.parts.penalty.prior import GaussianPrior, PriorDecay
from prunus.parts.penalty.redundant import RedundantLasso
from prunus.parts.penalty.scales import ResourceL1, ScaleL1, StrengthL1
from prunus.parts.penalty.separating import (
    AutoBalanced,
    RelativeL2,
    SeparatingL2,
    ShrunkAnchor,
    TrainabilityPreserving,
)
from prunus.parts.penalty.spectral import SpectralExcess
from prunus.parts.penalty.targeted import Anchored, GrowingL2
from prunus.parts.penalty.walk import RandomWalk

__all__ = [
    "Anchored",
    "AutoBalanced",
    "Centripetal",
    "CoupledLasso",
    "ExponentialBias",
    "GaussianPrior",
    "GroupLasso",
    "GrowingL2",
    "GuidedLasso",
    "HyperbolicBias",
    "PriorDecay",
    "RandomWalk",
    "RedundantLasso",
    "RelativeL2",
    "ResourceL1",
    "ScaleL1",
    "SeparatingL2",
    "ShrunkAnchor",
    "SidesLasso",
    "SilentLasso",
    "SpectralExcess",
    "StrengthL1",
    "TockL1",
    "TrainabilityPreserving",
]
