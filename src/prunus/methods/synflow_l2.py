"""SynFlow-L2."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import PathSaliency
from prunus.parts.granularity import Element
from prunus.parts.schedule import Iterative

synflow_l2 = Recipe(
    name="synflow_l2",
    source="Gebhart et al. 2021, arXiv:2101.10552",
    granularity=Element(),
    criterion=PathSaliency(),
    allocate=GlobalRanking(),
    schedule=Iterative(rounds=100),
)

card = Card(
    title="SynFlow-L2",
    use_when="you prune before training, without data, by the paths of the network",
    avoid_when=(
        "widths matter: it keeps few, wide paths and makes bottlenecks (arXiv:2010.11354); or the network has attention"
    ),
    deviations=(
        "Scores by w^2 dR/dw^2 in float64, running variances squared with the weights; other codes square "
        "parameters only and rank |w| dR/dw^2."
    ),
    rows=(9,),
)
