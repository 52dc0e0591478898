"""Structural redundancy reduction."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import StructuralRedundancy
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

srr_gr = Recipe(
    name="srr_gr",
    source="Wang, Li & Wang 2021, CVPR, arXiv:2104.03438",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=StructuralRedundancy(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="SRR-GR (structural redundancy reduction)",
    use_when="wide layers hold many near copies of the same filter, and there are no data",
    avoid_when="no two filters are alike at the threshold: then every layer is thinned by the same share",
    deviations=(
        "The scale of the threshold is that of a public reproduction. Coupled filters are joined to one long filter "
        "and scored by the sum of their norms."
    ),
    rows=(147,),
)
