"""HRank."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import FeatureRank
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

hrank = Recipe(
    name="hrank",
    source="Lin et al. 2020, CVPR, arXiv:2002.10179",
    granularity=Channel(),
    criterion=FeatureRank(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="HRank",
    use_when="you prune convolutions without labels and can afford a singular value decomposition per map",
    avoid_when=(
        "feature maps are small (all ranks are equal) or layers are read by anything but a convolution: these "
        "stay whole"
    ),
    deviations=(
        "The same density in every layer, all at once; the paper sets rates by hand and fine-tunes layer by "
        "layer. Ranks of the maps that the next layer reads, after a pooling; the layer before a classifier stays"
        " whole."
    ),
    rows=(78,),
)
