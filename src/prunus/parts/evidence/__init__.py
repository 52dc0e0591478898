"""Evidence types. Annotate a criterion's parameters with them; the engine collects exactly what is asked for."""

from prunus.parts.evidence.activations import Activation, ActivationGrad, FeatureMap, GateGrad
from prunus.parts.evidence.alive import AliveCost
from prunus.parts.evidence.attribution import Attribution
from prunus.parts.evidence.contributions import ConstantContributions, Contributions, FeatureGram
from prunus.parts.evidence.cost import UnitMacs, UnitMemory, UnitParams
from prunus.parts.evidence.coupling import CoupledWeight, OutgoingKernels, OutgoingWeight, Shift
from prunus.parts.evidence.curvature import InputLength, InputNorm, InverseCurvature, ReaderWeight
from prunus.parts.evidence.damage import ForwardOrder, LeaveOneOut
from prunus.parts.evidence.discrimination import AdditionOrder
from prunus.parts.evidence.dynamic import Gaussian, SmoothedGrad
from prunus.parts.evidence.feeding import FedScale, FeedingScale
from prunus.parts.evidence.fisher import (
    FisherDiagonal,
    GeneralFisher,
    InverseFisher,
    InverseFisherBlock,
    OutputFisher,
    PairCurvature,
    SampleCount,
    UnitTaylor,
)
from prunus.parts.evidence.flow import DataPathFlow, PathFlow, SynapticFlow
from prunus.parts.evidence.fluctuation import ReaderVariance
from prunus.parts.evidence.foresight import KernelGrad, MetaGrad, NoiseGrad
from prunus.parts.evidence.gates import GateValue
from prunus.parts.evidence.gradients import BatchGrad, BatchGradAffine, BatchGradScale, Grad, HessianGrad
from prunus.parts.evidence.hessian import HessianDiagonal, HessianWeight
from prunus.parts.evidence.hidden import HiddenStates
from prunus.parts.evidence.initial import InitialWeight
from prunus.parts.evidence.kronecker import FilterCurvature
from prunus.parts.evidence.noise import Noise
from prunus.parts.evidence.priors import PriorPrecision
from prunus.parts.evidence.probes import ProbeAccuracy
from prunus.parts.evidence.propagated import PropagatedImportance
from prunus.parts.evidence.regional import GradLength, RegionalGrad
from prunus.parts.evidence.relative import RelativeChannel, RelativeWeight
from prunus.parts.evidence.routed import ExpertNorm, ExpertTokens, RouterRow
from prunus.parts.evidence.running import Movement, RunningTaylor, RunningTaylorGate, SensitivityBound
from prunus.parts.evidence.shapley import Shapley
from prunus.parts.evidence.shrunk import Shrunk
from prunus.parts.evidence.tailored import LearnedScale
from prunus.parts.evidence.training import (
    Active,
    Age,
    Anchor,
    Before,
    Kept,
    LearningRate,
    Left,
    MakerBefore,
    Momentum,
    Progress,
    Round,
    Steps,
    Wanted,
)
from prunus.parts.evidence.weights import Affine, Maker, Scale, Weight
from prunus.parts.evidence.widths import KeptByScale

__all__ = [
    "Activation",
    "ActivationGrad",
    "Active",
    "AdditionOrder",
    "Affine",
    "Age",
    "AliveCost",
    "Anchor",
    "Attribution",
    "BatchGrad",
    "BatchGradAffine",
    "BatchGradScale",
    "Before",
    "ConstantContributions",
    "Contributions",
    "CoupledWeight",
    "DataPathFlow",
    "ExpertNorm",
    "ExpertTokens",
    "FeatureGram",
    "FeatureMap",
    "FedScale",
    "FeedingScale",
    "FilterCurvature",
    "FisherDiagonal",
    "ForwardOrder",
    "GateGrad",
    "GateValue",
    "Gaussian",
    "GeneralFisher",
    "Grad",
    "GradLength",
    "HessianDiagonal",
    "HessianGrad",
    "HessianWeight",
    "HiddenStates",
    "InitialWeight",
    "InputLength",
    "InputNorm",
    "InverseCurvature",
    "InverseFisher",
    "InverseFisherBlock",
    "Kept",
    "KeptByScale",
    "KernelGrad",
    "LearnedScale",
    "LearningRate",
    "LeaveOneOut",
    "Left",
    "Maker",
    "MakerBefore",
    "MetaGrad",
    "Momentum",
    "Movement",
    "Noise",
    "NoiseGrad",
    "OutgoingKernels",
    "OutgoingWeight",
    "OutputFisher",
    "PairCurvature",
    "PathFlow",
    "PriorPrecision",
    "ProbeAccuracy",
    "Progress",
    "PropagatedImportance",
    "ReaderVariance",
    "ReaderWeight",
    "RegionalGrad",
    "RelativeChannel",
    "RelativeWeight",
    "Round",
    "RouterRow",
    "RunningTaylor",
    "RunningTaylorGate",
    "SampleCount",
    "Scale",
    "SensitivityBound",
    "Shapley",
    "Shift",
    "Shrunk",
    "SmoothedGrad",
    "Steps",
    "SynapticFlow",
    "UnitMacs",
    "UnitMemory",
    "UnitParams",
    "UnitTaylor",
    "Wanted",
    "Weight",
]
