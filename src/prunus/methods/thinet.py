"""ThiNet."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import GreedyReconstruction
from prunus.parts.granularity import Channel
from prunus.parts.reconstruct import MaskRescale
from prunus.parts.schedule import OneShot

thinet = Recipe(
    name="thinet",
    source="Luo, Wu & Lin 2017, ICCV, arXiv:1707.06342",
    granularity=Channel(),
    criterion=GreedyReconstruction(),
    allocate=Uniform(),
    schedule=OneShot(),
    reconstruct=MaskRescale(),
    on="pretrained",
)

card = Card(
    title="ThiNet",
    use_when="you have a few unlabelled batches and want the channels that the next layer needs least",
    avoid_when="layers are very wide (tens of thousands of inputs times kernel positions): it keeps their products",
    deviations=(
        "The error is exact over all positions and output channels instead of a sample. Layers are selected with those "
        "before them still whole, and fine-tuned all at once; the paper fine-tunes one or two epochs after each."
    ),
    rows=(77,),
)
