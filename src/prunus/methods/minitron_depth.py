"""Minitron, in depth."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LossRise
from prunus.parts.granularity import Block
from prunus.parts.recover import Distill
from prunus.parts.schedule import OneShot

minitron_depth = Recipe(
    name="minitron_depth",
    source="Muralidharan et al. 2024, NeurIPS, arXiv:2407.14679",
    granularity=Block(),
    criterion=LossRise(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    recover=Distill(temperature=1.0, weight=1.0),
    on="pretrained",
)

card = Card(
    title="Minitron (depth)",
    use_when="a shallower model is wanted, for latency above all, and there is training data to distil on",
    avoid_when="accuracy matters more than latency: the paper finds width the better choice at equal size",
    deviations=(
        "By the rise of the loss (the paper's perplexity); its block importance is criterion=BlockInfluence(). "
        "Distillation of outputs alone; the paper also matches hidden states in depth, Distill(layers=...)."
    ),
)
