"""Block-punched pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Tile
from prunus.parts.schedule import OneShot

block_punched = Recipe(
    name="block_punched",
    source="Cai et al. 2021, AAAI, arXiv:2009.05697; in NPAS: Li et al. 2021, CVPR, arXiv:2012.00596",
    granularity=Tile((4, 4, 1, 1), reduce="l2"),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Block-punched pruning",
    use_when="you have a compiler that skips the same kernel positions in blocks of filters and channels",
    avoid_when="layers are smaller than a block: they stay dense",
    deviations=(
        "The selection only: the reweighted training of the paper, its choice of block sizes by latency, and the "
        "search over schemes and rates of NPAS are not part of this recipe. Layers that 4 does not divide stay "
        "dense."
    ),
    rows=(),
)
