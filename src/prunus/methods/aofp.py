"""AOFP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import BinaryFilterSearch
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

aofp = Recipe(
    name="aofp",
    source="Ding et al. 2019, ICML",
    granularity=Channel(),
    criterion=BinaryFilterSearch(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.0, end=0.75, every=100, power=1.0),
    on="pretrained",
)

card = Card(
    title="AOFP (approximated oracle filter pruning)",
    use_when="you fine-tune anyway and want widths to follow from the damage to the next layer",
    avoid_when="the network is a chain of residual sums only: coupled channels have many readers",
    deviations=(
        "The damage is exact for the linear part of the next layer instead of an average over sampled masks behind its "
        "nonlinearity. Units of all layers are ranked by it to meet a budget; the paper prunes each layer down to a "
        "fixed damage, searching while it trains."
    ),
    rows=(84,),
)
