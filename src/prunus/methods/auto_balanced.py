"""Auto-balanced filter pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.penalty import AutoBalanced
from prunus.parts.schedule import MarkThenCut

auto_balanced = Recipe(
    name="auto_balanced",
    source="Ding et al. 2018, AAAI, Auto-balanced filter pruning for efficient convolutional neural networks",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=MarkThenCut(cut=0.5),
    penalty=AutoBalanced(),
    on="pretrained",
)

card = Card(
    title="Auto-balanced filter pruning",
    use_when="the network is trained and what filters do should move from those that go to those that stay",
    avoid_when="the network has no time to train before filters go",
    deviations=(
        "One round, at the density of the budget in every layer; the paper repeats rounds with a few filters of every "
        "layer each. The threshold between both sides is that of the step at hand."
    ),
    rows=(98,),
)
