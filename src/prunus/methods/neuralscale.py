"""NeuralScale."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import PowerLaw
from prunus.parts.criteria import TaylorWeight
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

neuralscale = Recipe(
    name="neuralscale",
    source="Lee & Lee 2020, CVPR, arXiv:2006.12813",
    granularity=Channel(),
    criterion=TaylorWeight(),
    allocate=PowerLaw(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="NeuralScale",
    use_when="one network is wanted in many sizes whose layers should scale together",
    avoid_when="one size is enough: ranking at that size needs no law",
    deviations=(
        "One fit to a ranking at many densities, in units; the paper fits to a run that prunes while training, in "
        "parameters, repeats it on the scaled network, and trains the result from scratch."
    ),
    rows=(185,),
)
