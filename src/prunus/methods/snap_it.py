"""SNAP-it."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import UnitSensitivity
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Iterative

snap_it = Recipe(
    name="snap_it",
    source="Verdenius, Stol & Forre 2020, arXiv:2006.00896",
    granularity=Channel(),
    criterion=UnitSensitivity(),
    allocate=GlobalRanking(),
    schedule=Iterative(rounds=6),
)

card = Card(
    title="SNAP-it",
    use_when="you prune channels before training in a few rounds",
    avoid_when="cost is what counts: structured_snip divides by it",
    deviations=(
        "Gates on units, where the paper gates both sides of every layer; rounds halve what is left to remove "
        "geometrically in density instead of by its own series."
    ),
    rows=(214,),
)
