"""DEEP R."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import ConstrainedWeight, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.penalty import RandomWalk
from prunus.parts.schedule import Rewiring

deep_r = Recipe(
    name="deep_r",
    source="Bellec et al. 2018, ICLR, arXiv:1711.05136",
    granularity=Element(),
    criterion=ConstrainedWeight(),
    allocate=Uniform(),
    schedule=Rewiring(),
    start=Random(),
    grow=RandomGrowth(),
    penalty=RandomWalk(),
)

card = Card(
    title="DEEP R",
    use_when="you train sparse from scratch with plain SGD and want connections to be sampled, not ranked",
    avoid_when="steps are short: every one of them rewires, and events are written down one by one",
    deviations=(
        "A connection's fixed sign is that of its initial weight. Connections whose sign the very last step crosses "
        "stay. Regrown at zero as in the paper; the official code sets 1e-12. New connections are drawn from the whole "
        "network, as in algorithm 1, while the paper's layers begin at densities chosen by hand, here at one."
    ),
    rows=(23,),
)
