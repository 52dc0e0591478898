"""1xN."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Tile
from prunus.parts.schedule import OneShot

one_by_n = Recipe(
    name="one_by_n",
    source="Lin et al. 2023, TPAMI, arXiv:2105.14713",
    granularity=Tile((4, 1, 0, 0), skip_last=True),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="1xN",
    use_when="you run on CPUs whose kernels compute several output channels at once",
    avoid_when="filters are no multiple of N, or you need a smaller dense network",
    deviations=(
        "Filters are taken as they lie; the paper first sorts them by their norm, so that the N that share a mask "
        "are alike, and the next layer's inputs with them. The classifier stays dense, as in the official code's "
        "default."
    ),
    rows=(237,),
)
