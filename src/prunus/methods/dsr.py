"""Dynamic sparse reparameterization."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.redistribute import BySurvivors
from prunus.parts.schedule import PruneAndGrow

dsr = Recipe(
    name="dsr",
    source="Mostafa & Wang 2019, ICML, arXiv:1902.05967",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=PruneAndGrow(every=400, until=1.0, drop=0.01, decay="none", across=True, fresh=True),
    start=Random(),
    grow=RandomGrowth(),
    redistribute=BySurvivors(),
)

card = Card(
    title="Dynamic sparse reparameterization (DSR)",
    use_when="you train sparse from scratch, cannot afford a dense gradient, and do not know how dense to make layers",
    avoid_when="the dense gradient is affordable now and then, or layers must keep their density",
    deviations=(
        "The same share of all kept weights is dropped each time, those of least magnitude in the network: what the "
        "paper's threshold, doubled or halved whenever another number falls under it, approximates without sorting."
    ),
    rows=(24,),
)
