"""AC/DC."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Alternating

ac_dc = Recipe(
    name="ac_dc",
    source="Peste et al. 2021, NeurIPS, arXiv:2106.12379",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=Alternating(),
)

card = Card(
    title="AC/DC: alternating compressed and decompressed training",
    use_when="you train once and want a sparse model that is as good as pruning a trained one, at about half the cost",
    avoid_when="the dense model does not fit into memory, or the run is too short for several phases",
    deviations=(
        "Phases are fractions of the run, by default those of the official code for CIFAR-100. It is the sparse model "
        "that is left at the end; the paper's pair with a dense one takes a last dense phase more."
    ),
    rows=(220,),
)
