"""FORCE."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import RevivingSensitivity
from prunus.parts.granularity import Element
from prunus.parts.schedule import Iterative

force = Recipe(
    name="force",
    source="de Jorge et al. 2021, ICLR, arXiv:2006.09081",
    granularity=Element(),
    criterion=RevivingSensitivity(),
    allocate=GlobalRanking(rounding="nearest"),
    schedule=Iterative(rounds=100, revive=True),
)

card = Card(
    title="FORCE",
    use_when=(
        "you prune before training to extreme sparsity with labels: weights that were pruned too early come back"
    ),
    avoid_when="the gradient of one batch is expensive: 100 rounds are 100 passes",
    deviations=(
        "Evaluation mode. The count is exact, where the official code keeps ties at the threshold and cuts the "
        "count; its rounds use one batch each, here all calibration batches."
    ),
    rows=(213,),
)
