"""Recovery: what brings a pruned model back."""

from prunus.parts.recover.initialization import ApproximateIsometry, EdgeOfChaos, SignedConstant
from prunus.parts.recover.statistics import BatchNormRecalibration, Chain
from prunus.parts.recover.training import Distill, FineTune, Scratch

__all__ = [
    "ApproximateIsometry",
    "BatchNormRecalibration",
    "Chain",
    "Distill",
    "EdgeOfChaos",
    "FineTune",
    "Scratch",
    "SignedConstant",
]
