"""Lottery ticket (iterative magnitude, rewinding)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

lth = Recipe(
    name="lth",
    source="Frankle & Carbin 2019, ICLR, arXiv:1803.03635; late rewinding: Frankle et al. 2020, arXiv:1912.05671",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(rounding="floor"),
    schedule=Rounds(),
)

card = Card(
    title="Lottery ticket (iterative magnitude, rewinding)",
    use_when="you study trainability, or want the best sparse network whatever it costs",
    avoid_when="training is expensive: it trains once per round",
    deviations=(
        "Rewinds to initialization; large networks need Rounds(rewind=0.05). All rounds share the given steps. "
        "Round i keeps 0.8^i of all weights; open_lth removes a fifth of what is left, rounded up, and the weight "
        "on the threshold."
    ),
    rows=(48,),
)
