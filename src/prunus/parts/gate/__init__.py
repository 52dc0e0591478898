"""Gates: masks that are learned."""

from prunus.parts.gate.annealed import Annealed
from prunus.parts.gate.scores import Bernoulli, BinaryPopup, Popup, SignedPopup
from prunus.parts.gate.soft import Coefficient, TargetMean
from prunus.parts.gate.straight import Reselected, Straight

__all__ = [
    "Annealed",
    "Bernoulli",
    "BinaryPopup",
    "Coefficient",
    "Popup",
    "Reselected",
    "SignedPopup",
    "Straight",
    "TargetMean",
]
