"""SNIP with approximate dynamical isometry."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ConnectionSensitivity
from prunus.parts.granularity import Element
from prunus.parts.recover import ApproximateIsometry
from prunus.parts.schedule import OneShot

snip_isometry = Recipe(
    name="snip_isometry",
    source="Lee et al. 2020, ICLR, arXiv:1906.06307",
    granularity=Element(),
    criterion=ConnectionSensitivity(),
    allocate=GlobalRanking(rounding="nearest"),
    schedule=OneShot(),
    recover=ApproximateIsometry(),
)

card = Card(
    title="SNIP with approximate dynamical isometry",
    use_when="you prune a deep plain network before training: signals keep their lengths in what is left",
    avoid_when="the network is trained already: its weights are changed as if it were not",
    deviations=(
        "Initialize the model orthogonally yourself before pruning (torch.nn.init.orthogonal_), as the paper "
        "does. The objective is descended on squared, without data, until it settles. Without labels: "
        "criterion=NoiseSensitivity(labels='uniform')."
    ),
    rows=(7,),
)
