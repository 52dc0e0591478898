"""Structural tickets by regrouping."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking, Regroup
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

regroup = Recipe(
    name="regroup",
    source="Chen et al. 2022, ICML, arXiv:2202.04736",
    granularity=Element(skip_last=True),
    criterion=Magnitude(),
    allocate=Regroup(GlobalRanking()),
    schedule=Rounds(revive=True),
    on="initialized",
)

card = Card(
    title="Structural tickets by regrouping",
    use_when="you study lottery tickets, and your kernels run groups of filters that share their columns",
    avoid_when="training is expensive: it trains once per round; or layers have few filters",
    deviations=(
        "After every round of iterative magnitude pruning the mask is regrouped and the next round goes on from it. "
        "Filters are grouped by spectral bisection instead of hMETIS, and groups are filled up to the budget instead "
        "of to a density. The last layer stays dense. Rewinds to initialization, as lth does."
    ),
    rows=(60,),
)
