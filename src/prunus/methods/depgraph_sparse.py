"""DepGraph with its sparse training."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import GroupNorm
from prunus.parts.granularity import Coupled
from prunus.parts.penalty import RelativeL2
from prunus.parts.schedule import OneShot

depgraph_sparse = Recipe(
    name="depgraph_sparse",
    source="Fang et al. 2023, CVPR, arXiv:2301.12900",
    granularity=Coupled(),
    criterion=GroupNorm(),
    allocate=GlobalRanking(normalize="mean"),
    schedule=OneShot(at=0.5),
    penalty=RelativeL2(),
    on="pretrained",
)

card = Card(
    title="Group norm with sparse training (DepGraph)",
    use_when="you prune channels, heads and widths of any network together and can train it before",
    avoid_when="there are no steps to train with: `depgraph` has the scores alone",
    deviations=(
        "Which weights go together is Prunus's own finding. All weights of a group decay by its own factors, shifts "
        "and biases do not. The first half of the steps trains with the penalty, the second without it."
    ),
    rows=(107,),
)
