"""4x1 blocks by magnitude."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Tile
from prunus.parts.schedule import OneShot

block_magnitude = Recipe(
    name="block_magnitude",
    source="Narang et al. 2017, arXiv:1711.02782; Mao et al. 2017, arXiv:1705.08922",
    granularity=Tile((4, 1, 1, 1)),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="4x1 blocks by magnitude",
    use_when="your sparse kernels read short vectors along the output channels",
    avoid_when="layers have fewer outputs than a block, or no kernel of yours reads blocks",
    deviations=(
        "Blocks of four consecutive outputs at one input and kernel position, worth their L1 norm. Other blocks are "
        "another box: Tile((8, 1, 1, 1)), Tile((16, 16, 1, 1))."
    ),
    rows=(),
)
