"""Structured sparsity learning: filter shapes."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Tile
from prunus.parts.penalty import GroupLasso
from prunus.parts.schedule import OneShot

ssl_shapes = Recipe(
    name="ssl_shapes",
    source="Wen et al. 2016, NeurIPS, arXiv:1608.03665",
    granularity=Tile((0, 1, 1, 1)),
    criterion=L2Norm(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=GroupLasso(),
)

card = Card(
    title="Structured sparsity learning of filter shapes (SSL)",
    use_when="your convolutions are matrix products of unfolded patches, of which columns can be left out",
    avoid_when="you need a smaller dense network: columns become zeros",
    deviations=(
        "A unit is one input channel at one kernel position, over all filters of a layer: a column of the unfolded "
        "weight. The budget says how many go, in the paper a threshold close to zero does. The first half of the "
        "steps trains with the penalty, the second without it."
    ),
    rows=(15,),
)
