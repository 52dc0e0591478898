"""Powerpropagation."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.gate import PowerPropagation
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

powerprop = Recipe(
    name="powerprop",
    source="Schwarz et al. 2021, NeurIPS, arXiv:2110.00296",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    gate=PowerPropagation(),
)

card = Card(
    title="Powerpropagation",
    use_when="a network is trained from scratch and pruned by magnitude afterwards, at whatever density",
    avoid_when="weights are trained already: small ones would move ever less",
    deviations=(
        "Pruned once at the end, globally; the paper's curves keep twice the share in the last layer. alpha=2; the "
        "paper takes larger ones for small networks, smaller ones for large, and combines it with Top-KAST."
    ),
    rows=(220,),
)
