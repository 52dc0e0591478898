"""CAR."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LossRise
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Iterative

car = Recipe(
    name="car",
    source="Abbasi-Asl & Yu 2017, arXiv:1705.07356",
    granularity=Channel(),
    criterion=LossRise(),
    allocate=Uniform(),
    schedule=Iterative(rounds=10, spacing="linear"),
    on="pretrained",
)

card = Card(
    title="CAR (structural compression)",
    use_when="the network is small enough to be run once per filter, and you want the true price of every filter",
    avoid_when="there are thousands of filters: each round runs the network once for each of them",
    deviations=(
        "The rise of the loss instead of the fall of the accuracy. Filters go in ten rounds, scored anew before each, "
        "instead of one by one; for the paper's pace set Iterative(rounds=number of filters)."
    ),
    rows=(140,),
)
