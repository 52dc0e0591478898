"""Sparse momentum."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import MomentumMagnitude
from prunus.parts.redistribute import ByMomentum
from prunus.parts.schedule import PruneAndGrow

snfs = Recipe(
    name="snfs",
    source="Dettmers & Zettlemoyer 2019, arXiv:1907.04840",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=PruneAndGrow(every=400, until=1.0, drop=0.5),
    start=Random(),
    grow=MomentumMagnitude(),
    redistribute=ByMomentum(),
)

card = Card(
    title="Sparse networks from scratch (sparse momentum)",
    use_when="you train sparse from scratch, dense gradients are affordable, and layers should find their own density",
    avoid_when="memory is the limit: the average of dense gradients is as large as the dense model",
    deviations=(
        "Every 400 steps; the paper once per epoch. The number regrown is exactly the number dropped, layers that are "
        "full pass on what they have no room for; the official code smooths out its misses over epochs and drops less "
        "in layers that are nearly dense. Momentum of regrown weights starts at zero, there at the layer's mean."
    ),
    rows=(25,),
)
