"""Recovery: what brings a pruned model back."""

from prunus.parts.recover.adapters import LoRA
from prunus.parts.recover.adversary import Adversary
from prunus.parts.recover.experts import ClusterMean
from prunus.parts.recover.initialization import ApproximateIsometry, EdgeOfChaos, SignedConstant
from prunus.parts.recover.statistics import BatchNormRecalibration, Chain
from prunus.parts.recover.training import Distill, FineTune, Scratch

__all__ = [
    "Adversary",
    "ApproximateIsometry",
    "BatchNormRecalibration",
    "Chain",
    "ClusterMean",
    "Distill",
    "EdgeOfChaos",
    "FineTune",
    "LoRA",
    "Scratch",
    "SignedConstant",
]
