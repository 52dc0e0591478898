"""Proximal maps: what units are multiplied by after every optimizer step."""

from prunus.parts.prox.phases import Ticking
from prunus.parts.prox.quota import CostQuota
from prunus.parts.prox.steps import ActiveGradient, Decaying, HalfSpace, MarkedHalfSpace
from prunus.parts.prox.thresholds import MarkedThreshold, SoftThreshold

__all__ = [
    "ActiveGradient",
    "CostQuota",
    "Decaying",
    "HalfSpace",
    "MarkedHalfSpace",
    "MarkedThreshold",
    "SoftThreshold",
    "Ticking",
]
