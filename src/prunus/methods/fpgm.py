"""FPGM."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import GeometricMedian
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Repeated

fpgm = Recipe(
    name="fpgm",
    source="He et al. 2019, CVPR, arXiv:1811.00250",
    granularity=Channel(),
    criterion=GeometricMedian(),
    allocate=Uniform(),
    schedule=Repeated(hold=True),
)

card = Card(
    title="FPGM",
    use_when="filters of a layer resemble each other, so that norms say little",
    avoid_when="layers are narrow: there is little to be redundant with",
    deviations=(
        "Only the distance criterion (the official code can first remove a share by norm). Coupled filters "
        "are compared joined together."
    ),
    rows=(36,),
)
