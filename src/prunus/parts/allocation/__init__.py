"""Allocation: which units stay, given their scores and a density."""

from prunus.parts.allocation.density import ERK, SmartRatio
from prunus.parts.allocation.ranking import LAMP, GlobalRanking, NofM, Uniform

__all__ = ["ERK", "LAMP", "GlobalRanking", "NofM", "SmartRatio", "Uniform"]
