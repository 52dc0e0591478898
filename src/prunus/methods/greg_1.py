"""Growing regularization."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.penalty import GrowingL2
from prunus.parts.schedule import MarkThenCut

greg_1 = Recipe(
    name="greg_1",
    source="Wang et al. 2021, ICLR, arXiv:2012.09243",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=MarkThenCut(cut=0.6),
    penalty=GrowingL2(),
    on="pretrained",
)

card = Card(
    title="Growing regularization (GReg-1)",
    use_when="the network is trained and filters should be gone before they are cut",
    avoid_when="the run is too short for the penalty to grow: raise its step",
    deviations=(
        "One density in every layer, where the paper sets ratios by hand. The schedule says when marked filters are "
        "cut, the official code cuts 10 000 steps after the penalty has reached its limit or kept filters are 1000 "
        "times as large."
    ),
    rows=(100,),
)
