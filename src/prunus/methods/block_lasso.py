"""Blocks of weights by group lasso."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Tile
from prunus.parts.penalty import GroupLasso
from prunus.parts.schedule import OneShot

block_lasso = Recipe(
    name="block_lasso",
    source="Yuan & Lin 2006, JRSS B 68; for blocks of weights: Wen et al. 2016, NeurIPS, arXiv:1608.03665",
    granularity=Tile((4, 4, 1, 1)),
    criterion=L2Norm(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=GroupLasso(),
    on="pretrained",
)

card = Card(
    title="Group lasso over blocks (inspired by structured compression of low-precision networks)",
    use_when="a kernel of yours skips blocks of filters and channels at one kernel position",
    avoid_when="layers are smaller than a block: they stay dense",
    deviations=(
        "Inspired by structured block compression of low-precision networks (2018): its quantization, and blocks "
        "within blocks, are not part of this recipe. Other blocks are another box: Tile((16, 16, 1, 1)). Layers that "
        "a block does not divide stay dense. The first half of the steps trains with the penalty, the second without "
        "it."
    ),
    rows=(145,),
)
