"""RigL."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Magnitude, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import GradientMagnitude
from prunus.parts.schedule import PruneAndGrow

rigl = Recipe(
    name="rigl",
    source="Evci et al. 2020, ICML, arXiv:1911.11134",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=ERK(),
    schedule=PruneAndGrow(every=100, until=0.75, drop=0.3, skip_step=True),
    start=Random(),
    grow=GradientMagnitude(),
)

card = Card(
    title="RigL",
    use_when="you train sparse from scratch at a fixed budget of memory and operations",
    avoid_when="you already have a trained model",
    deviations=(
        "Densities sum exactly to the target; the official code adds noise of 1e-5 to break ties, here the "
        "earlier weight wins. In reinforcement learning (the study of Graesser et al. 2022, arXiv:2206.10369) every "
        "network has a session of its own."
    ),
    rows=(27, 34),
)
