"""NeST."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import GradientMagnitude
from prunus.parts.schedule import GrowThenPrune

nest = Recipe(
    name="nest",
    source="Dai, Yin & Jha 2019, IEEE Transactions on Computers, arXiv:1711.02017",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=GrowThenPrune(),
    start=Random(),
    grow=GradientMagnitude(),
)

card = Card(
    title="NeST, growth and pruning of connections",
    use_when="training should begin smaller than it ends, and connections be added where the loss asks for them",
    avoid_when="you want neurons to be added as well, or the smallest cost of training: the peak is above the budget",
    deviations=(
        "Connections only: the paper also grows neurons between pairs of high bridging gradient, feature maps of "
        "convolutions by trying them, and prunes areas of kernels. It grows until an accuracy is reached and prunes "
        "until one is lost; here densities are laid over the steps, and the last one is the budget."
    ),
    rows=(26,),
)
