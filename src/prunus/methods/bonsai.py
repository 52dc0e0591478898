"""Bonsai."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import PerturbativeRegression
from prunus.parts.granularity import Inner
from prunus.parts.schedule import Iterative

bonsai = Recipe(
    name="bonsai",
    source="Dery et al. 2024, arXiv:2402.05406",
    granularity=Inner(),
    criterion=PerturbativeRegression(),
    allocate=GlobalRanking(),
    schedule=Iterative(rounds=10, spacing="linear"),
    on="pretrained",
)

card = Card(
    title="Bonsai",
    use_when="heads and neurons of a model are to compete for one budget, and only forward passes fit in memory",
    avoid_when="gradients are at hand: one backward tells what hundreds of forwards estimate",
    deviations=(
        "Ten rounds with 200 sub-models each, of as many more units doubted as go in a round. Sampled by the rank of "
        "the prior. Without the adaptation after pruning that the paper recommends; replace(bonsai, "
        "recover=Distill(weight=0.5)) is its distillation of outputs. Channels of convolutions are units too."
    ),
    rows=(233,),
)
