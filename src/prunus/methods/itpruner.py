"""ITPruner."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import DependenceProgram
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

itpruner = Recipe(
    name="itpruner",
    source="Zheng et al. 2021, arXiv:2108.08532",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=DependenceProgram(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="ITPruner (nHSIC and a linear program)",
    use_when="a budget in multiply-accumulates is to be met in seconds, with one batch of inputs and no search",
    avoid_when="the number of channels itself is what is limited, or scipy is not at hand",
    deviations=(
        "Features are what the next layer reads, coupled layers count as one, and the budget is met exactly: shares "
        "are rounded down and channels added while they fit. Needs scipy (pip install 'prunus[solve]')."
    ),
    rows=(150,),
)
