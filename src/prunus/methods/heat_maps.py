"""Filters by their heat maps."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import ClassHeat
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

heat_maps = Recipe(
    name="heat_maps",
    source="inspired by Zhang et al. 2022, Sensors 22(5), and Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391",
    granularity=Channel(),
    criterion=ClassHeat(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Heat maps (inspired by Zhang et al. 2022)",
    use_when="filters should be kept for what they add to the class activation map",
    avoid_when="you want the published method: its formula could not be verified, this is a Grad-CAM reading of it",
    deviations=(
        "The title and summary of the paper say that class-activation heat maps rank filters; the formula here is"
        " that of Grad-CAM for one map."
    ),
    rows=(94,),
)
