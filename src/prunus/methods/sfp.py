"""Soft filter pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Repeated

sfp = Recipe(
    name="sfp",
    source="He et al. 2018, IJCAI, arXiv:1808.06866",
    granularity=Channel(),
    criterion=L2Norm(),
    allocate=Uniform(),
    schedule=Repeated(hold=False),
)

card = Card(
    title="Soft filter pruning",
    use_when="you prune while training from scratch and want wrong choices to be undone",
    avoid_when="you have no training budget",
    deviations="Ten prunings spread over the run instead of one per epoch: Repeated(times=epochs) is the paper's.",
    rows=(35,),
)
