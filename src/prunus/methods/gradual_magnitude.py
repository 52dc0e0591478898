"""Gradual magnitude (cubic)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Gradual

gradual_magnitude = Recipe(
    name="gradual_magnitude",
    source="Zhu & Gupta 2017, arXiv:1710.01878",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=Gradual(),
)

card = Card(
    title="Gradual magnitude (cubic)",
    use_when="you can train once more and want high sparsity at good accuracy with one knob",
    avoid_when="you cannot train",
    deviations="Starts dense at step 0; begin, end and distance of events are fractions and steps of the run.",
    rows=(39,),
)
