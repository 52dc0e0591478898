"""Criteria: what a unit is worth. Higher = keep."""

from prunus.parts.criteria.activation import (
    ActivationDeviation,
    FeatureRank,
    LiveShare,
    MeanActivation,
    NonzeroShare,
    WeightedFluctuation,
)
from prunus.parts.criteria.attribution import (
    AbsoluteAttribution,
    FunctionalContribution,
    NeuronImportance,
    ShapleyValue,
    StationaryHead,
)
from prunus.parts.criteria.both_sides import (
    BothSides,
    CoresetSampling,
    FeatureShift,
    GroupNorm,
    KernelSparsityEntropy,
    OutInEnergy,
)
from prunus.parts.criteria.connection import SquaredMagnitude, SynapticStrength
from prunus.parts.criteria.damage import ForwardSelection, LossRise
from prunus.parts.criteria.data_free import (
    GeometricMedian,
    L2Norm,
    Magnitude,
    NormScale,
    Random,
    SignSplitMagnitude,
    SynapticSaliency,
)
from prunus.parts.criteria.depth import BlockInfluence, SegmentedFlow
from prunus.parts.criteria.discrimination import DiscriminativeSelection
from prunus.parts.criteria.drop import (
    ConstrainedWeight,
    MagnitudeAndGradient,
    ReciprocalSensitivity,
    Sensitivity,
    SquaredGradientPerMac,
)
from prunus.parts.criteria.feedback import (
    ClassHeat,
    GateSensitivity,
    ScaleSensitivity,
    TailoredScale,
    TaylorActivation,
)
from prunus.parts.criteria.flow_measures import BiasedLoss, GradientPreservation, LossChange
from prunus.parts.criteria.foresight import (
    DataPathSaliency,
    KernelSaliency,
    MetaSensitivity,
    NoiseSensitivity,
    PathSaliency,
    RevivingSensitivity,
    UnitSensitivity,
)
from prunus.parts.criteria.gradient import ConnectionSensitivity, GradientSignal, TaylorGate, TaylorWeight
from prunus.parts.criteria.learned import AboveThreshold, Hysteresis, LearnedGate
from prunus.parts.criteria.posterior import LearnedPosteriorDamage, ReducedEvidence, SignalToNoise
from prunus.parts.criteria.probes import ProbeGain
from prunus.parts.criteria.reconstruction import BinaryFilterSearch, GreedyReconstruction, LassoPath, SummedActivation
from prunus.parts.criteria.running import ConfidenceBound, MomentumTaylor, MomentumTaylorGate, MovementScore
from prunus.parts.criteria.second_order import (
    BlockObsFisher,
    DiagonalFisher,
    DiagonalHessian,
    GroupFisher,
    KroneckerFilter,
    ModelReduction,
    ObsFisher,
    OutputDistortion,
    PosteriorDamage,
    SecondOrderPairs,
    SecondOrderProduct,
    WeightFisher,
)
from prunus.parts.criteria.sensitivity import EmpiricalSensitivity, ReaderSensitivity
from prunus.parts.criteria.subspace import LeverageScore
from prunus.parts.criteria.surgeon import InputWeighted, ObsSaliency, RelativeImportance
from prunus.parts.criteria.trajectory import WeightTrajectory

__all__ = [
    "AboveThreshold",
    "AbsoluteAttribution",
    "ActivationDeviation",
    "BiasedLoss",
    "BinaryFilterSearch",
    "BlockInfluence",
    "BlockObsFisher",
    "BothSides",
    "ClassHeat",
    "ConfidenceBound",
    "ConnectionSensitivity",
    "ConstrainedWeight",
    "CoresetSampling",
    "DataPathSaliency",
    "DiagonalFisher",
    "DiagonalHessian",
    "DiscriminativeSelection",
    "EmpiricalSensitivity",
    "FeatureRank",
    "FeatureShift",
    "ForwardSelection",
    "FunctionalContribution",
    "GateSensitivity",
    "GeometricMedian",
    "GradientPreservation",
    "GradientSignal",
    "GreedyReconstruction",
    "GroupFisher",
    "GroupNorm",
    "Hysteresis",
    "InputWeighted",
    "KernelSaliency",
    "KernelSparsityEntropy",
    "KroneckerFilter",
    "L2Norm",
    "LassoPath",
    "LearnedGate",
    "LearnedPosteriorDamage",
    "LeverageScore",
    "LiveShare",
    "LossChange",
    "LossRise",
    "Magnitude",
    "MagnitudeAndGradient",
    "MeanActivation",
    "MetaSensitivity",
    "ModelReduction",
    "MomentumTaylor",
    "MomentumTaylorGate",
    "MovementScore",
    "NeuronImportance",
    "NoiseSensitivity",
    "NonzeroShare",
    "NormScale",
    "ObsFisher",
    "ObsSaliency",
    "OutInEnergy",
    "OutputDistortion",
    "PathSaliency",
    "PosteriorDamage",
    "ProbeGain",
    "Random",
    "ReaderSensitivity",
    "ReciprocalSensitivity",
    "ReducedEvidence",
    "RelativeImportance",
    "RevivingSensitivity",
    "ScaleSensitivity",
    "SecondOrderPairs",
    "SecondOrderProduct",
    "SegmentedFlow",
    "Sensitivity",
    "ShapleyValue",
    "SignSplitMagnitude",
    "SignalToNoise",
    "SquaredGradientPerMac",
    "SquaredMagnitude",
    "StationaryHead",
    "SummedActivation",
    "SynapticSaliency",
    "SynapticStrength",
    "TailoredScale",
    "TaylorActivation",
    "TaylorGate",
    "TaylorWeight",
    "UnitSensitivity",
    "WeightFisher",
    "WeightTrajectory",
    "WeightedFluctuation",
]
