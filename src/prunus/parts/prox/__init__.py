"""Proximal maps: what units are multiplied by after every optimizer step."""

from prunus.parts.prox.thresholds import SoftThreshold

__all__ = ["SoftThreshold"]
