"""Gates: masks that are learned."""

from prunus.parts.gate.annealed import Annealed
from prunus.parts.gate.bilevel import BiLevel, ScaledPopup
from prunus.parts.gate.binary import BoxBinary
from prunus.parts.gate.candidates import Candidates, GivenCandidates
from prunus.parts.gate.concrete import HardConcrete
from prunus.parts.gate.constrained import DualRestart, Lagrangian, TargetShape
from prunus.parts.gate.density import LearnedDensity
from prunus.parts.gate.estimated import Arm, PolicyGradient
from prunus.parts.gate.exploring import Dormant, PowerPropagation, SoftBoundary, TopKast
from prunus.parts.gate.factored import FactoredMovement
from prunus.parts.gate.fista import SoftMask
from prunus.parts.gate.heaviside import LogisticHeaviside
from prunus.parts.gate.movement import MovementGate, SoftMovementGate
from prunus.parts.gate.proximal import Skeleton, SparseScale
from prunus.parts.gate.scores import Bernoulli, BinaryPopup, Popup, SignedPopup
from prunus.parts.gate.soft import Coefficient, TargetMean
from prunus.parts.gate.straight import Reselected, Straight
from prunus.parts.gate.subset import GumbelSubset
from prunus.parts.gate.thresholds import LayerThreshold, MaskingThreshold, SoftThresholding
from prunus.parts.gate.variational import Bottleneck, ConstrainedBottleneck, GaussianScale, WeightPosterior

__all__ = [
    "Annealed",
    "Arm",
    "Bernoulli",
    "BiLevel",
    "BinaryPopup",
    "Bottleneck",
    "BoxBinary",
    "Candidates",
    "Coefficient",
    "ConstrainedBottleneck",
    "Dormant",
    "DualRestart",
    "FactoredMovement",
    "GaussianScale",
    "GivenCandidates",
    "GumbelSubset",
    "HardConcrete",
    "Lagrangian",
    "LayerThreshold",
    "LearnedDensity",
    "LogisticHeaviside",
    "MaskingThreshold",
    "MovementGate",
    "PolicyGradient",
    "Popup",
    "PowerPropagation",
    "Reselected",
    "ScaledPopup",
    "SignedPopup",
    "Skeleton",
    "SoftBoundary",
    "SoftMask",
    "SoftMovementGate",
    "SoftThresholding",
    "SparseScale",
    "Straight",
    "TargetMean",
    "TargetShape",
    "TopKast",
    "WeightPosterior",
]
