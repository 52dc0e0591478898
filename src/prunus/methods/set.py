"""SET."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ERK
from prunus.parts.criteria import Random, SignSplitMagnitude
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.schedule import PruneAndGrow

set = Recipe(  # noqa: A001 - the recipe has the name of its file
    name="set",
    source="Mocanu et al. 2018, Nature Communications, arXiv:1707.04780",
    granularity=Element(),
    criterion=SignSplitMagnitude(),
    allocate=ERK(kernel=False),
    schedule=PruneAndGrow(every=100, until=1.0, drop=0.3, decay="none", fresh=True),
    start=Random(),
    grow=RandomGrowth(),
)

card = Card(
    title="SET",
    use_when="you train sparse from scratch and cannot afford a dense gradient",
    avoid_when="a dense gradient now and then is affordable: RigL is usually better",
    deviations=(
        "The paper evolves once per epoch; here every 100 steps, with a cut of the two signs together that is "
        "exact in sum. Regrown weights start at zero, as in later implementations. Dynamic sparse training of "
        "reinforcement learning (DS-TD3) is this on actor and critic, one session each, with `session.mask_` for their "
        "targets; it also restarts the optimizer's memory of regrown weights, as is done here anyway."
    ),
    rows=(22, 33),
)
