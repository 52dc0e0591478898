"""Structured sparsity learning: filters and channels."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Channel
from prunus.parts.penalty import SidesLasso
from prunus.parts.schedule import OneShot

ssl = Recipe(
    name="ssl",
    source="Wen et al. 2016, NeurIPS, arXiv:1608.03665",
    granularity=Channel(),
    criterion=L2Norm(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=SidesLasso(),
)

card = Card(
    title="Structured sparsity learning (SSL)",
    use_when="you train the network anyway and want whole filters to vanish by themselves",
    avoid_when="layers differ in weight scale by design: one threshold spans them all",
    deviations=(
        "The budget says how many filters go, in the paper a threshold close to zero does. Filters that residual sums "
        "couple are one group, their readers another, and the two sides have one strength. The first half of the "
        "steps trains with the penalty, the second without it."
    ),
    rows=(15,),
)
