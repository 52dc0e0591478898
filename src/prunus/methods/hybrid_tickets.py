"""Hybrid tickets."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import SmartRatio
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

hybrid_tickets = Recipe(
    name="hybrid_tickets",
    source="Su et al. 2020, NeurIPS, arXiv:2009.11094",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=SmartRatio(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Hybrid tickets",
    use_when="you have a trained plain convolutional network and want smart ratios with its own largest weights",
    avoid_when="the network is not a plain stack of convolutions the ratios were made for",
    deviations=(
        "Weights and learning rate are yours: the paper rewinds the learning rate and trains on. Layer densities "
        "as smart_ratio."
    ),
    rows=(4,),
)
