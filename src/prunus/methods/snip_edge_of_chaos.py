"""SNIP with rescaling to the edge of chaos."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ConnectionSensitivity
from prunus.parts.granularity import Element
from prunus.parts.recover import EdgeOfChaos
from prunus.parts.schedule import OneShot

snip_edge_of_chaos = Recipe(
    name="snip_edge_of_chaos",
    source="Hayou et al. 2021, ICLR, arXiv:2002.08797",
    granularity=Element(),
    criterion=ConnectionSensitivity(),
    allocate=GlobalRanking(rounding="nearest"),
    schedule=OneShot(),
    recover=EdgeOfChaos(),
)

card = Card(
    title="SNIP with rescaling to the edge of chaos",
    use_when="you prune a deep network without normalization before training to high sparsity",
    avoid_when="the network is normalized after every layer, which undoes any scale, or is trained already",
    deviations=(
        "Each layer gets back the mean square that its rows had; the paper divides by that of variance 1/N. The "
        "initialization itself (on the edge of chaos) is yours. Its reparametrization of residual networks is "
        "left out."
    ),
    rows=(8,),
)
