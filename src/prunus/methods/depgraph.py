"""DepGraph's group norm."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import GroupNorm
from prunus.parts.granularity import Coupled
from prunus.parts.schedule import OneShot

depgraph = Recipe(
    name="depgraph",
    source="Fang et al. 2023, CVPR, arXiv:2301.12900",
    granularity=Coupled(),
    criterion=GroupNorm(),
    allocate=GlobalRanking(normalize="mean"),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Group norm (DepGraph)",
    use_when="you prune channels, heads and widths of any network together, without data",
    avoid_when="you can afford gradients: a norm does not know what the loss needs",
    deviations=(
        "The scores alone: the sparse training that pushes whole groups towards zero first is in `depgraph_sparse`. "
        "Which weights go together is Prunus's own finding."
    ),
    rows=(107,),
)
