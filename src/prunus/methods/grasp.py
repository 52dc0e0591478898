"""GraSP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import GradientSignal
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

grasp = Recipe(
    name="grasp",
    source="Wang, Zhang & Grosse 2020, ICLR, arXiv:2002.07376",
    granularity=Element(),
    criterion=GradientSignal(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
)

card = Card(
    title="GraSP",
    use_when="you prune before training and want to keep gradient flow rather than the loss",
    avoid_when="memory is short: it differentiates twice",
    deviations=(
        "The official code keeps the weight on its threshold and so removes one fewer; here the count is exact, "
        "also where many scores are zero (dead units). It scores in training mode, "
        "GradientSignal(train_mode=True); here in evaluation mode. Its optional re-initialization of linear layers "
        "is not part of the recipe."
    ),
    rows=(2,),
)
