"""Second-order structured pruning with pairs of units."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SecondOrderPairs
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

sosp_i = Recipe(
    name="sosp_i",
    source="Nonnenmacher et al. 2022, ICLR, arXiv:2110.11395",
    granularity=Channel(),
    criterion=SecondOrderPairs(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.0),
    on="pretrained",
)

card = Card(
    title="SOSP-I",
    use_when="correlations between channels matter and the network has few outputs",
    avoid_when="there are thousands of outputs or tens of thousands of channels: take sosp_h",
    deviations=(
        "A unit's score is its row of pair terms summed over the whole network, fixed before anything is removed. "
        "With outputs at several positions (tokens) the Gauss-Newton matrix is estimated with random signs."
    ),
    rows=(75,),
)
