"""MDP, its channel part."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import BilinearProgram
from prunus.parts.criteria import TaylorWeight
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

mdp = Recipe(
    name="mdp",
    source="Sun et al. 2024, arXiv:2406.12079",
    granularity=Channel(),
    criterion=TaylorWeight(),
    allocate=BilinearProgram(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="MDP, channels only",
    use_when="multiply-accumulates are limited and the product of neighbouring widths should be counted as it is",
    avoid_when="the network is very deep and the solution must be quick: a ranking takes no integer program",
    deviations=(
        "Channels only: the paper removes whole blocks in the same program. The cost is the exact number of multiply- "
        "accumulates; the paper has a latency measured for every pair of widths. Taylor importance on weights, "
        "averaged over the calibration batches. Needs scipy (pip install 'prunus[solve]')."
    ),
    rows=(156,),
)
