"""Criteria: what a unit is worth. Higher = keep."""

from prunus.parts.criteria.data_free import (
    GeometricMedian,
    L2Norm,
    Magnitude,
    NormScale,
    Random,
    SignSplitMagnitude,
    SynapticSaliency,
)
from prunus.parts.criteria.gradient import ConnectionSensitivity, GradientSignal, TaylorGate, TaylorWeight

__all__ = [
    "ConnectionSensitivity",
    "GeometricMedian",
    "GradientSignal",
    "L2Norm",
    "Magnitude",
    "NormScale",
    "Random",
    "SignSplitMagnitude",
    "SynapticSaliency",
    "TaylorGate",
    "TaylorWeight",
]
