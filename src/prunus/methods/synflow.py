"""SynFlow."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SynapticSaliency
from prunus.parts.granularity import Element
from prunus.parts.schedule import Iterative

synflow = Recipe(
    name="synflow",
    source="Tanaka et al. 2020, NeurIPS, arXiv:2006.05467",
    granularity=Element(),
    criterion=SynapticSaliency(),
    allocate=GlobalRanking(),
    schedule=Iterative(rounds=100),
)

card = Card(
    title="SynFlow",
    use_when="you prune before training, without data, to extreme sparsity",
    avoid_when=(
        "sparsity is mild (data-driven criteria are a little better), or the network has attention: on a constant "
        "input no flow passes a softmax to queries and keys, so they are emptied first"
    ),
    deviations=(
        "Scores in float64, as the authors advise (their code runs in float32); the 100 rounds are part of the method "
        "(one-shot it collapses layers). The count is exact where the official threshold removes ties as well."
    ),
    rows=(3,),
)
