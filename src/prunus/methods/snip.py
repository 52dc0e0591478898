"""SNIP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ConnectionSensitivity
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

snip = Recipe(
    name="snip",
    source="Lee, Ajanthan & Torr 2019, ICLR, arXiv:1810.02340",
    granularity=Element(),
    criterion=ConnectionSensitivity(),
    allocate=GlobalRanking(rounding="nearest"),
    schedule=OneShot(),
)

card = Card(
    title="SNIP",
    use_when="you want to prune before training, with one labelled batch",
    avoid_when="sparsity is extreme (above about 95 %): one-shot SNIP collapses layers; iterate or use SynFlow",
    deviations=(
        "Prunes weights, not biases (the authors' code prunes both; re-implementations do not). Counts as the "
        'authors do, round(density * n); re-implementations cut it, GlobalRanking(rounding="ceil"). Scores in '
        "evaluation mode; ConnectionSensitivity(train_mode=True) is the other reading."
    ),
    rows=(1,),
)
