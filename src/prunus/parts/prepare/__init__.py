"""Preparations: the same outputs from other modules, so that there are other units."""

from prunus.parts.prepare.arrange import Arranged
from prunus.parts.prepare.biased import Biased
from prunus.parts.prepare.factorize import Factorize
from prunus.parts.prepare.residue import Residue
from prunus.parts.prepare.rotate import Rotate

__all__ = ["Arranged", "Biased", "Factorize", "Residue", "Rotate"]
