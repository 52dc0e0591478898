"""Multi-layer pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import BothSides
from prunus.parts.granularity import Channel
from prunus.parts.penalty import GroupLasso
from prunus.parts.schedule import OneShot

multi_layer_pruning = Recipe(
    name="multi_layer_pruning",
    source="Singh et al. 2019, WACV, arXiv:1811.08342",
    granularity=Channel(),
    criterion=BothSides(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=GroupLasso(),
    on="pretrained",
)

card = Card(
    title="Multi-layer pruning (inspired by)",
    use_when="you prune channels of a detector or classifier that you go on training",
    avoid_when="layers differ in weight scale by design: one ranking spans them all",
    deviations=(
        "Inspired by the paper: filters are made sparse by group lasso and chosen by their own norm and that of the "
        "slices that read them. The paper counts weights below a global threshold on both sides instead, and its "
        "first stage also acts on activations."
    ),
    rows=(144,),
)
