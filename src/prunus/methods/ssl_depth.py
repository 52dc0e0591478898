"""Structured sparsity learning: depth."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Block
from prunus.parts.penalty import GroupLasso
from prunus.parts.schedule import OneShot

ssl_depth = Recipe(
    name="ssl_depth",
    source="Wen et al. 2016, NeurIPS, arXiv:1608.03665",
    granularity=Block(),
    criterion=L2Norm(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=GroupLasso(),
)

card = Card(
    title="Structured sparsity learning of depth (SSL)",
    use_when="the network is residual and you train it anyway",
    avoid_when="the network has no shortcuts: without its layers nothing passes",
    deviations=(
        "A unit is a whole residual block, where the paper penalizes every layer that a shortcut bridges by itself. "
        "Norms of blocks of unequal size are compared as they are. The first half of the steps trains with the "
        "penalty, the second without it."
    ),
    rows=(15,),
)
