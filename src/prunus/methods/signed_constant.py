"""Signed constants (supermask with the signs of initialization)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import WeightTrajectory
from prunus.parts.granularity import Element
from prunus.parts.recover import SignedConstant
from prunus.parts.schedule import Rounds

signed_constant = Recipe(
    name="signed_constant",
    source="Zhou et al. 2019, NeurIPS, arXiv:1905.01067",
    granularity=Element(),
    criterion=WeightTrajectory(final=1.0, signs="same"),
    allocate=Uniform(),
    schedule=Rounds(),
    recover=SignedConstant(),
)

card = Card(
    title="Signed constants (supermask with the signs of initialization)",
    use_when="you study what of a ticket matters: of its weights, only the signs are left",
    avoid_when="you want accuracy from few steps of training: lth keeps the weights",
    deviations=(
        "Every layer keeps the same share, where the paper gives each layer its own. The constant is the standard"
        " deviation of the layer at initialization."
    ),
    rows=(10,),
)
