"""Structured sparsity regularization, l2,0."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Channel
from prunus.parts.penalty import ShrunkAnchor
from prunus.parts.schedule import OneShot

ssr_l20 = Recipe(
    name="ssr_l20",
    source="Lin et al. 2019, TNNLS 31(2), arXiv:1901.07827",
    granularity=Channel(),
    criterion=L2Norm(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=ShrunkAnchor(norm="l20"),
    on="pretrained",
)

card = Card(
    title="Structured sparsity regularization (SSR, l2,0)",
    use_when="you train the network anyway and group lasso by gradients leaves filters small and not zero",
    avoid_when="there are no steps for the splitting to settle in",
    deviations=(
        "The budget says how many filters go, in the paper those that the proximal map has set to zero do. The split- "
        "off filters are renewed every 100 steps. The first half of the steps trains with the penalty, the second "
        "without it."
    ),
    rows=(99,),
)
