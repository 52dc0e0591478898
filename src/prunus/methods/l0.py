"""L0 regularization with hard concrete gates."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import HardConcrete
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

l0 = Recipe(
    name="l0",
    source="Louizos, Welling & Kingma 2018, ICLR, arXiv:1712.01312",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.8),
    gate=HardConcrete(weighs="weights"),
)

card = Card(
    title="L0 regularization (hard concrete gates)",
    use_when="the network is trained anyway, and channels may be switched off at random along the way",
    avoid_when="you need a given density from the penalty alone: use `constrained_l0`, or the budget",
    deviations=(
        "The paper keeps the gates whose final value is above zero, at whatever density the strength gives; here "
        'these are the record "open", and the budget says how many of the likeliest stay. A channel\'s gate acts '
        "where it is read (the paper: on the map, or on a linear layer's inputs). Single weights are "
        "granularity=Element(). The last fifth of the steps trains what is left."
    ),
)
