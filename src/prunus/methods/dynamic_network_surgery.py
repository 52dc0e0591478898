"""Dynamic network surgery."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Hysteresis
from prunus.parts.gate import Straight
from prunus.parts.granularity import Element
from prunus.parts.schedule import Surgery

dynamic_network_surgery = Recipe(
    name="dynamic_network_surgery",
    source="Guo, Yao & Chen 2016, NIPS, arXiv:1608.04493",
    granularity=Element(),
    criterion=Hysteresis(),
    allocate=Uniform(),
    schedule=Surgery(),
    gate=Straight(),
    on="pretrained",
)

card = Card(
    title="Dynamic network surgery",
    use_when="a trained network is pruned deep and there is time to train it on, with wrong cuts undone",
    avoid_when="there is no training",
    deviations=(
        "The budget sets the thresholds, per layer, instead of mean plus a multiple of the deviation; their ratio "
        "is the official code's 1.1 / 0.9. Masks are renewed on fixed steps as often as the code's dice would, "
        "divided by ten. Biases are not pruned."
    ),
    rows=(113,),
)
