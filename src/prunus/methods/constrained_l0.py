"""Hard concrete gates under a constraint with dual restarts."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import DualRestart
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

constrained_l0 = Recipe(
    name="constrained_l0",
    source="Gallego-Posada et al. 2022, NeurIPS, arXiv:2208.04425",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=OneShot(at=0.8),
    gate=DualRestart(),
)

card = Card(
    title="Constrained L0 (dual restarts)",
    use_when="gates are to end at the density that was asked for, without a search for the strength of a penalty",
    avoid_when="the network must not be trained",
    deviations=(
        "A constraint per layer at one density; for one over the whole network, DualRestart(per='model') and a "
        "global ranking. The final event meets the density exactly, keeping the likeliest gates of every layer. The "
        "L2 term is the optimizer's weight decay. Single weights are granularity=Element(). In the 1,560 steps of our "
        "benchmark fewer gates end open than the constraint counts; Lagrangian(lr=0.2, ascent=1.0, warm=0.5, "
        "per='group') ends on it."
    ),
    rows=(153,),
)
