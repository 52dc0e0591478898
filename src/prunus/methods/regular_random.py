"""Random regular graphs (expanders)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Regular
from prunus.parts.criteria import Random
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

regular_random = Recipe(
    name="regular_random",
    source="Prabhu, Varma & Namboodiri 2018, ECCV, arXiv:1711.08757; before training: Hoang et al. 2023, ICLR",
    granularity=Element(),
    criterion=Random(),
    allocate=Regular(),
    schedule=OneShot(),
)

card = Card(
    title="Random regular graphs (expanders)",
    use_when="you want random masks in which no neuron is cut off: every row and column keeps as many weights",
    avoid_when="layers need different densities: every layer keeps the same share here",
    deviations=(
        "Sampled by trades between rows instead of by matchings; whether a graph is Ramanujan is not checked. "
        "Rows and columns differ by one where the count does not divide."
    ),
    rows=(210,),
)
