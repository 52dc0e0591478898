"""FLOPs-aware complexity-driven pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ComplexityAware
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

complexity_macs = Recipe(
    name="complexity_macs",
    source="Zawish, Davy & Abraham 2022, arXiv:2208.12816",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=ComplexityAware(by="macs"),
    schedule=OneShot(),
)

card = Card(
    title="FLOPs-aware complexity-driven pruning",
    use_when="filters are to go before training, without data, and arithmetic is what must shrink",
    avoid_when="the costliest layers are also the ones that matter: nothing about the task is looked at",
    deviations=(
        "A layer loses its share of filters exactly; the paper draws layers at random with these shares. Filters by "
        "their L1 norm; coupled filters count together."
    ),
    rows=(182,),
)
