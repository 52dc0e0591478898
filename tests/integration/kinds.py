"""Recipes that act at every step, one of each kind: what any training loop has to carry."""

from __future__ import annotations

from dataclasses import replace

import prunus
from prunus.parts.penalty import Anchored
from prunus.parts.prox import SoftThreshold
from prunus.parts.schedule import Gradual, Marked, OneShot

_base = replace(prunus.methods.get("gradual_magnitude"), schedule=OneShot(at=0.5))
KINDS: dict[str, prunus.Recipe] = {
    "penalty": replace(_base, penalty=Anchored(every=2, rho=0.1)),
    "prox": replace(_base, prox=SoftThreshold(strength=0.02)),
    "marks and a gate": replace(prunus.methods.get("dpf"), schedule=Marked(of=Gradual(end=0.5, every=2), until=0.75)),
}
