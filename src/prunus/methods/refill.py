"""Structural tickets by refilling."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking, Refill
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

refill = Recipe(
    name="refill",
    source="Chen et al. 2022, ICML, arXiv:2202.04736",
    granularity=Element(skip_last=True),
    criterion=Magnitude(),
    allocate=Refill(GlobalRanking()),
    schedule=Rounds(),
    on="initialized",
)

card = Card(
    title="Structural tickets by refilling",
    use_when="you study lottery tickets, and want whole filters gone rather than single weights",
    avoid_when="training is expensive: it trains once per round; or you want a smaller dense network (use Channel())",
    deviations=(
        "After every round of iterative magnitude pruning the mask is refilled and the next round goes on from it, "
        "as in the official main_imp_fillback; the paper also refills the masks of unstructured rounds once each. "
        "All but the last layer are refilled, the first one too, which the code spares; exclude does that. Rewinds "
        "to initialization, as lth does."
    ),
    rows=(60,),
)
