"""MEST."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import MagnitudeAndGradient, Random
from prunus.parts.granularity import Element
from prunus.parts.growth import RandomGrowth
from prunus.parts.schedule import SoftBound

mest = Recipe(
    name="mest",
    source="Yuan et al. 2021, NeurIPS, arXiv:2110.14032",
    granularity=Element(),
    criterion=MagnitudeAndGradient(factor=0.01),
    allocate=Uniform(),
    schedule=SoftBound(),
    start=Random(),
    grow=RandomGrowth(),
)

card = Card(
    title="MEST with elastic mutation and a soft memory bound",
    use_when="you train sparse from scratch without dense gradients and can spare a little memory at first",
    avoid_when="the memory bound is hard from the first step on: see `itop`",
    deviations=(
        "Gradients are those of the calibration batches at the update. The paper prunes blocks and patterns as well, "
        "and leaves out training examples that are never forgotten."
    ),
    rows=(220,),
)
