"""Filters and their readers by norm."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import BothSides
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

both_sides_norm = Recipe(
    name="both_sides_norm",
    source="Singh et al. 2019, WACV, arXiv:1811.08342",
    granularity=Channel(),
    criterion=BothSides(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Filters and their readers by norm",
    use_when="you prune channels without data and want to spare those that the next layer leans on",
    avoid_when="layers differ in weight scale by design: one ranking spans them all",
    deviations=(
        "The filter selection of the paper alone; `multi_layer_pruning` trains with group sparsity first. "
        "Slices count with the norm of their filter, where the paper's threshold is on each."
    ),
    rows=(144,),
)
