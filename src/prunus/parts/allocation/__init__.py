"""Allocation: which units stay, given their scores and a density."""

from prunus.parts.allocation.density import ERK, SmartRatio
from prunus.parts.allocation.isomorphic import Isomorphic
from prunus.parts.allocation.ranking import LAMP, GlobalRanking, NofM, Uniform

__all__ = ["ERK", "LAMP", "GlobalRanking", "Isomorphic", "NofM", "SmartRatio", "Uniform"]
