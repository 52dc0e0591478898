"""Lottery tickets that are rewound to a point early in training."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

late_rewinding = Recipe(
    name="late_rewinding",
    source="Frankle et al. 2020, ICML, arXiv:1912.05671; late resetting: Yu et al. 2020, ICLR, arXiv:1906.02768",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=Rounds(rewind=0.05),
)

card = Card(
    title="Iterative magnitude with late rewinding",
    use_when="you look for lottery tickets in a network that is too large to be rewound to its initial weights",
    avoid_when="training is expensive: it trains once per round",
    deviations=(
        "Rewinds to 5 % of a round, where the papers choose the point by task (it is stable where "
        "prunus.measure.instability is about zero). All rounds share the given steps. Embedding tables are not pruned."
    ),
    rows=(49, 64),
)
