"""Magnitude increase (supermask criterion)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import WeightTrajectory
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

magnitude_increase = Recipe(
    name="magnitude_increase",
    source="Zhou et al. 2019, NeurIPS, arXiv:1905.01067",
    granularity=Element(),
    criterion=WeightTrajectory(final=1.0, initial=-1.0),
    allocate=Uniform(),
    schedule=Rounds(),
)

card = Card(
    title="Magnitude increase (supermask criterion)",
    use_when="you study which weights training makes large, not which ones are large",
    avoid_when="the initial weights are lost: it compares with them",
    deviations=(
        "Every layer keeps the same share, where the paper gives each layer its own; pruned weights are zero in "
        "the next round, not kept at their initial value."
    ),
    rows=(10,),
)
