"""Exactly K heads by a relaxed draw without replacement."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import GumbelSubset
from prunus.parts.granularity import Head
from prunus.parts.schedule import OneShot

subset_heads = Recipe(
    name="subset_heads",
    source="Li, Cotterell & Sachan 2021, TACL, arXiv:2108.04657",
    granularity=Head(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.8),
    gate=GumbelSubset(),
    on="pretrained",
)

card = Card(
    title="Differentiable subset pruning of heads",
    use_when="the number of heads is given and you can train: it holds at every step, on average and at the end",
    avoid_when="units are many: every step draws all that stay, one after the other",
    deviations=(
        "Every layer keeps the heads that the granularity says it must (one). Of the row's other systems: learning "
        "which weights may differ from pre-trained ones (diff pruning) leaves no zeros and is not a mask of "
        "weights."
    ),
    rows=(225,),
)
