"""Criteria: what a unit is worth. Higher = keep."""

from prunus.parts.criteria.activation import (
    ActivationDeviation,
    FeatureRank,
    LiveShare,
    MeanActivation,
    NonzeroShare,
    StandardFluctuation,
    WeightedFluctuation,
)
from prunus.parts.criteria.attribution import (
    AbsoluteAttribution,
    FunctionalContribution,
    NeuronImportance,
    ShapleyValue,
    StationaryHead,
)
from prunus.parts.criteria.blended import GradientBlended, RegionallyBlended
from prunus.parts.criteria.both_sides import (
    BothSides,
    CoresetSampling,
    FeatureShift,
    GroupNorm,
    KernelSparsityEntropy,
    OutInEnergy,
    ReaderEnergy,
)
from prunus.parts.criteria.connection import SquaredMagnitude, SynapticStrength
from prunus.parts.criteria.coupled import GroupTaylor
from prunus.parts.criteria.damage import BackwardElimination, ForwardSelection, LossRise, PerturbativeRegression
from prunus.parts.criteria.data_free import (
    GeometricMedian,
    L2Norm,
    Magnitude,
    NormScale,
    Random,
    SignSplitMagnitude,
    SynapticSaliency,
)
from prunus.parts.criteria.depth import BlockInfluence, ConsecutiveInfluence, ResidualNorm, SegmentedFlow
from prunus.parts.criteria.discrimination import DiscriminativeSelection
from prunus.parts.criteria.domain import DualImportance
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
from prunus.parts.criteria.inputs import AggregatedActivation, InOrder, SecondMoment
from prunus.parts.criteria.learned import AboveThreshold, ClusterLargest, ControllerWorth, Hysteresis, LearnedGate
from prunus.parts.criteria.posterior import LearnedPosteriorDamage, ReducedEvidence, SignalToNoise
from prunus.parts.criteria.probes import ProbeGain
from prunus.parts.criteria.reconstruction import BinaryFilterSearch, GreedyReconstruction, LassoPath, SummedActivation
from prunus.parts.criteria.routed import RoutedNorm, RoutedTokens, RouterDistance
from prunus.parts.criteria.running import (
    ConfidenceBound,
    MomentumTaylor,
    MomentumTaylorGate,
    MovementScore,
    SmoothedSensitivity,
    SummedSensitivity,
)
from prunus.parts.criteria.saliences import MixedSalience
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
    "AggregatedActivation",
    "BackwardElimination",
    "BiasedLoss",
    "BinaryFilterSearch",
    "BlockInfluence",
    "BlockObsFisher",
    "BothSides",
    "ClassHeat",
    "ClusterLargest",
    "ConfidenceBound",
    "ConnectionSensitivity",
    "ConsecutiveInfluence",
    "ConstrainedWeight",
    "ControllerWorth",
    "CoresetSampling",
    "DataPathSaliency",
    "DiagonalFisher",
    "DiagonalHessian",
    "DiscriminativeSelection",
    "DualImportance",
    "EmpiricalSensitivity",
    "FeatureRank",
    "FeatureShift",
    "ForwardSelection",
    "FunctionalContribution",
    "GateSensitivity",
    "GeometricMedian",
    "GradientBlended",
    "GradientPreservation",
    "GradientSignal",
    "GreedyReconstruction",
    "GroupFisher",
    "GroupNorm",
    "GroupTaylor",
    "Hysteresis",
    "InOrder",
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
    "MixedSalience",
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
    "PerturbativeRegression",
    "PosteriorDamage",
    "ProbeGain",
    "Random",
    "ReaderEnergy",
    "ReaderSensitivity",
    "ReciprocalSensitivity",
    "ReducedEvidence",
    "RegionallyBlended",
    "RelativeImportance",
    "ResidualNorm",
    "RevivingSensitivity",
    "RoutedNorm",
    "RoutedTokens",
    "RouterDistance",
    "ScaleSensitivity",
    "SecondMoment",
    "SecondOrderPairs",
    "SecondOrderProduct",
    "SegmentedFlow",
    "Sensitivity",
    "ShapleyValue",
    "SignSplitMagnitude",
    "SignalToNoise",
    "SmoothedSensitivity",
    "SquaredGradientPerMac",
    "SquaredMagnitude",
    "StandardFluctuation",
    "StationaryHead",
    "SummedActivation",
    "SummedSensitivity",
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
