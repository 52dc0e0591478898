"""Filter skeletons."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Skeleton
from prunus.parts.granularity import Tile
from prunus.parts.schedule import OneShot

filter_skeleton = Recipe(
    name="filter_skeleton",
    source="Meng et al. 2020, NeurIPS, arXiv:2009.14410",
    granularity=Tile((1, 0, 1, 1), skip_last=True),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    gate=Skeleton(),
)

card = Card(
    title="Filter skeletons (stripe-wise pruning)",
    use_when="you want the shape of every filter learned while you train",
    avoid_when="you have no training budget, or nothing that you run on skips stripes",
    deviations=(
        "The budget decides how many stripes go; the paper's threshold says how many it would keep by itself "
        "(recorded as open). Zeros stay in place: the conversion to 1x1 convolutions and shifts is not part "
        "of it. In a linear layer a stripe is a neuron."
    ),
    rows=(20,),
)
