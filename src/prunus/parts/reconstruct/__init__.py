"""Reconstruction: how the weights that stay in a layer make up for those that go."""

from prunus.parts.reconstruct.alternating import Alternating
from prunus.parts.reconstruct.fisher import FisherUpdate
from prunus.parts.reconstruct.fold import MaskRescale, Merge
from prunus.parts.reconstruct.squares import BiasCompensation, LeastSquares
from prunus.parts.reconstruct.surgeon import ExactObs, ObsUpdate
from prunus.parts.reconstruct.swaps import ExpectedErrorSwaps
from prunus.parts.reconstruct.units import GroupObs, Osscar

__all__ = [
    "Alternating",
    "BiasCompensation",
    "ExactObs",
    "ExpectedErrorSwaps",
    "FisherUpdate",
    "GroupObs",
    "LeastSquares",
    "MaskRescale",
    "Merge",
    "ObsUpdate",
    "Osscar",
]
