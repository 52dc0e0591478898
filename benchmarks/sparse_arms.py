"""The methods that benchmarks/sparse_training.py compares, each with its edits for runs as short as these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from prunus import Recipe, methods
from prunus.parts.allocation import GlobalRanking
from prunus.parts.gate import DualRestart, Lagrangian
from prunus.parts.penalty import ScaleL1
from prunus.parts.schedule import Gradual, GradualPruneAndGrow, PruneAndGrow


@dataclass(frozen=True)
class Arm:
    """A method in the comparison: its settings by name, and the sparsities it is run at.

    `edits` says how the recipe differs from the published one.
    """

    name: str
    settings: Mapping[str, Recipe]
    sparsities: tuple[float, ...]
    edits: str = ""


def arm(name: str, sparsities: Sequence[float], edits: str = "", of: str = "", **changes: Any) -> Arm:
    """An arm with one setting."""
    return Arm(name, {"": replace(methods.get(of or name), **changes)}, tuple(sparsities), edits)


HIGH = (0.95, 0.98)
EVERY = 50
GROWN = GradualPruneAndGrow(every=EVERY)
SCALED = f"an event every {EVERY} steps"


@cache
def arms() -> dict[str, Arm]:
    """All arms, by name."""
    slim = methods.get("network_slimming")
    pressed = {f"strength {s:g}": replace(slim, penalty=ScaleL1(strength=s)) for s in (1e-3, 1e-2)}
    found = (
        arm("dense", (0.0,), "nothing is pruned", of="magnitude"),
        arm("erk_random", HIGH, "masks stay as they are drawn"),
        arm("rigl", HIGH, SCALED, schedule=PruneAndGrow(every=EVERY, until=0.75, drop=0.3, skip_step=True)),
        arm("granet", HIGH, SCALED, schedule=GROWN),
        arm("lth", HIGH),
        arm("gradual_magnitude", HIGH, SCALED, schedule=Gradual(every=EVERY)),
        arm("continuous_sparsification", HIGH),
        arm("sr_ste", (0.5,)),
        arm(
            "constrained_l0",
            (0.5,),
            "the gates' rates 50 times as large, for a fiftieth of the steps",
            gate=DualRestart(lr=0.035, ascent=0.05),
        ),
        arm(
            "lagrangian_l0",
            (0.5,),
            "an equality for every layer, its two multipliers trained (FLOP's term), at rates for a short run",
            of="constrained_l0",
            gate=Lagrangian(lr=0.2, ascent=1.0, warm=0.5, per="group"),
        ),
        Arm("network_slimming", pressed, (0.5, 0.7), "a larger strength, for fewer steps"),
        arm("slimming_without", (0.5, 0.7), "no penalty", of="network_slimming", penalty=None),
        arm(
            "gradual_magnitude_global",
            HIGH,
            f"{SCALED}; ranked across layers",
            of="gradual_magnitude",
            allocate=GlobalRanking(),
            schedule=Gradual(every=EVERY),
        ),
    )
    return {a.name: a for a in found}
