"""SynFlow-L2, weighted by data."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import DataPathSaliency
from prunus.parts.granularity import Element
from prunus.parts.schedule import Iterative

synflow_l2_data = Recipe(
    name="synflow_l2_data",
    source="Gebhart et al. 2021, arXiv:2101.10552",
    granularity=Element(),
    criterion=DataPathSaliency(),
    allocate=GlobalRanking(),
    schedule=Iterative(rounds=100),
)

card = Card(
    title="SynFlow-L2, weighted by data",
    use_when="you prune before training by the paths of the network, and have inputs but no labels",
    avoid_when="inputs are token ids, which have no square: it is synflow_l2 then",
    deviations="Paths begin with the mean of x^2 over the calibration inputs; otherwise as synflow_l2.",
    rows=(9,),
)
