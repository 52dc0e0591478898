"""Biprop: multi-prize tickets, binary weights in a random network."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import BinaryPopup
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

biprop = Recipe(
    name="biprop",
    source="Diffenderfer & Kailkhura 2021, ICLR, arXiv:2103.09377",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=OneShot(at=1.0),
    gate=BinaryPopup(),
)

card = Card(
    title="Multi-prize tickets (biprop)",
    use_when="weights are to be binary and sparse, and need not be trained",
    avoid_when="you want the best accuracy, or activations are to be binary as well",
    deviations=(
        "Activations are not binarized. Every layer has the density of the budget from the first step on. Biases "
        "and normalizations keep their values (the official code can train normalizations). Weights are stored in "
        "their own type: alpha times a sign, or zero. "
        "Wants weights of Kaiming size, or normalizations: PyTorch's default is smaller and learns slower."
    ),
    rows=(51,),
)
