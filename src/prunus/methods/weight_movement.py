"""Distance from initialization (supermask criterion)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import WeightTrajectory
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

weight_movement = Recipe(
    name="weight_movement",
    source="Zhou et al. 2019, NeurIPS, arXiv:1905.01067",
    granularity=Element(),
    criterion=WeightTrajectory(final=1.0, initial=1.0, combine="distance"),
    allocate=Uniform(),
    schedule=Rounds(),
)

card = Card(
    title="Distance from initialization (supermask criterion)",
    use_when="you want the weights that training moved furthest",
    avoid_when="the initial weights are lost, or you mean movement by gradients (Sanh et al. 2020)",
    deviations=(
        "What the paper calls movement. Every layer keeps the same share, where the paper gives each layer its own."
    ),
    rows=(10,),
)
