"""PEEL."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Reallocation
from prunus.parts.criteria import NormScale
from prunus.parts.granularity import Channel
from prunus.parts.penalty import ScaleL1
from prunus.parts.schedule import OneShot

peel = Recipe(
    name="peel",
    source="Hou et al. 2021, arXiv:2103.01847",
    granularity=Channel(reduce="mean"),
    criterion=NormScale(),
    allocate=Reallocation(),
    schedule=OneShot(at=0.5),
    penalty=ScaleL1(),
)

card = Card(
    title="PEEL (resource reallocation)",
    use_when="the network has batch normalization and some layers are clearly more used than others",
    avoid_when="there is no normalization to read, or the widths must meet a hardware multiple layer by layer",
    deviations=(
        "Widths in proportion to each layer's mean |gamma| within the dense network, and the channels with the largest "
        "scales stay and are trained on; the paper widens the layers of a small backbone and trains it from scratch."
    ),
    rows=(171,),
)
