"""Allocation: which units stay, given their scores and a density."""

from prunus.parts.allocation.ablation import Inverted, SharesOf, Shuffled
from prunus.parts.allocation.affine import LearnedAffine
from prunus.parts.allocation.ahead import (
    DeviationDensities,
    ForwardDensities,
    OutlierDensities,
    PerLayer,
    SpectralDensities,
)
from prunus.parts.allocation.bilinear import BilinearProgram
from prunus.parts.allocation.clustered import Clustered, Refill, Regroup
from prunus.parts.allocation.density import ERK, SmartRatio
from prunus.parts.allocation.dependence import DependenceProgram
from prunus.parts.allocation.drawn import RandomWidths
from prunus.parts.allocation.experts import ExpertClusters
from prunus.parts.allocation.guarantee import ErrorGuarantee
from prunus.parts.allocation.information import InformationConcentration
from prunus.parts.allocation.isomorphic import Isomorphic
from prunus.parts.allocation.knapsack import LatencyKnapsack
from prunus.parts.allocation.pattern import CROSSES, Connectivity, KernelPattern
from prunus.parts.allocation.penalized import CostPenalized
from prunus.parts.allocation.permuted import Permuted
from prunus.parts.allocation.power_law import PowerLaw
from prunus.parts.allocation.quality import StdQuality
from prunus.parts.allocation.ranking import LAMP, GlobalRanking, NofM, Uniform
from prunus.parts.allocation.rearranged import Rearranged
from prunus.parts.allocation.redundancy import StructuralRedundancy
from prunus.parts.allocation.regular import Regular
from prunus.parts.allocation.representatives import SparseRecovery, SubspaceClusters
from prunus.parts.allocation.rows import LearnedRows
from prunus.parts.allocation.scan import SensitivityScan
from prunus.parts.allocation.shares import ComplexityAware, Reallocation, UniformPlus
from prunus.parts.allocation.two_constraints import TwoConstraint
from prunus.parts.allocation.wrapped import Begun, CostNormalized, Protected

__all__ = [
    "CROSSES",
    "ERK",
    "LAMP",
    "Begun",
    "BilinearProgram",
    "Clustered",
    "ComplexityAware",
    "Connectivity",
    "CostNormalized",
    "CostPenalized",
    "DependenceProgram",
    "DeviationDensities",
    "ErrorGuarantee",
    "ExpertClusters",
    "ForwardDensities",
    "GlobalRanking",
    "InformationConcentration",
    "Inverted",
    "Isomorphic",
    "KernelPattern",
    "LatencyKnapsack",
    "LearnedAffine",
    "LearnedRows",
    "NofM",
    "OutlierDensities",
    "PerLayer",
    "Permuted",
    "PowerLaw",
    "Protected",
    "RandomWidths",
    "Reallocation",
    "Rearranged",
    "Refill",
    "Regroup",
    "Regular",
    "SensitivityScan",
    "SharesOf",
    "Shuffled",
    "SmartRatio",
    "SparseRecovery",
    "SpectralDensities",
    "StdQuality",
    "StructuralRedundancy",
    "SubspaceClusters",
    "TwoConstraint",
    "Uniform",
    "UniformPlus",
]
