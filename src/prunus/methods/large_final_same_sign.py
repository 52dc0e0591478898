"""Large final, same sign (supermask criterion)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import WeightTrajectory
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

large_final_same_sign = Recipe(
    name="large_final_same_sign",
    source="Zhou et al. 2019, NeurIPS, arXiv:1905.01067",
    granularity=Element(),
    criterion=WeightTrajectory(final=1.0, signs="same"),
    allocate=Uniform(),
    schedule=Rounds(),
)

card = Card(
    title="Large final, same sign (supermask criterion)",
    use_when="you look for supermasks: masks that make an untrained network better than chance",
    avoid_when="you want the trained accuracy: lth is as good",
    deviations=(
        "Every layer keeps the same share, where the paper gives each layer its own. The mask on the initial "
        "weights is what is called the supermask."
    ),
    rows=(10,),
)
