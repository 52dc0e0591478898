"""In-time over-parameterization."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Magnitude, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.schedule import PruneAndGrow

itop = Recipe(
    name="itop",
    source="Liu et al. 2021, ICML, arXiv:2102.02887",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=ERK(),
    schedule=PruneAndGrow(every=1500, until=1.0, drop=0.5),
    start=Random(),
    grow=RandomGrowth(),
)

card = Card(
    title="In-time over-parameterization (SET-ITOP)",
    use_when="you train sparse for long with small batches, so that most weights get their turn",
    avoid_when="the run is too short for many updates: look at `explored` in the history, the share ever active",
    deviations=(
        "The paper's RigL-ITOP is replace(itop, grow=GradientMagnitude(), schedule=PruneAndGrow(every=4000, until=1.0, "
        "drop=0.5)). Small batches, its other advice, are the training loop's."
    ),
    rows=(28,),
)
