"""Growing regularization of all filters before they are chosen."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.penalty import SeparatingL2
from prunus.parts.schedule import MarkThenCut

greg_2 = Recipe(
    name="greg_2",
    source="Wang et al. 2021, ICLR, arXiv:2012.09243",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=MarkThenCut(at=0.3, cut=0.6),
    penalty=SeparatingL2(),
    on="pretrained",
)

card = Card(
    title="Growing regularization (GReg-2)",
    use_when="the network is trained and its filters are too alike to be ranked as they are",
    avoid_when="the run is too short for the penalty to grow: raise its steps",
    deviations=(
        "One density in every layer, where the paper sets ratios by hand. The schedule says when filters are chosen "
        "and when they are cut; in the paper both follow from limits of the penalty."
    ),
    rows=(100,),
)
