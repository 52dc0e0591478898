"""Gradient norm preservation."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import GradientPreservation
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

gradient_preservation = Recipe(
    name="gradient_preservation",
    source="Lubana & Dick 2021, ICLR, arXiv:2009.11839",
    granularity=Channel(),
    criterion=GradientPreservation(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.0, end=0.2, power=1.0),
)

card = Card(
    title="Gradient norm preservation",
    use_when="you prune filters early in training and want its dynamics to stay as they are",
    avoid_when="memory is short: it differentiates twice",
    deviations="Rounds of equal portions in the first fifth of the steps, where the paper prunes once per epoch.",
    rows=(91,),
)
