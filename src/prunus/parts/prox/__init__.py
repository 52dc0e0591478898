"""Proximal maps: what units are multiplied by after every optimizer step."""

from prunus.parts.prox.phases import Ticking
from prunus.parts.prox.steps import ActiveGradient, Decaying, HalfSpace
from prunus.parts.prox.thresholds import SoftThreshold

__all__ = [
    "ActiveGradient",
    "Decaying",
    "HalfSpace",
    "SoftThreshold",
    "Ticking",
]
