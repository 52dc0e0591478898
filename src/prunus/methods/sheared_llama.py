"""A given shape, whose units are chosen by hard concrete gates."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import TargetShape
from prunus.parts.granularity import Coupled
from prunus.parts.schedule import OneShot

sheared_llama = Recipe(
    name="sheared_llama",
    source="inspired by Xia et al. 2024 (Sheared LLaMA), ICLR, arXiv:2310.06694",
    granularity=Coupled(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=OneShot(at=0.5),
    gate=TargetShape(),
    on="pretrained",
)

card = Card(
    title="Target shapes under Lagrangians (inspired by Sheared LLaMA)",
    use_when="a decoder is to get a given regular shape, and there is training data for the search and after it",
    avoid_when="layers may differ: `cofi` lets them find their own shares",
    deviations=(
        "Shapes are those of heads (or groups of queries) and neurons, the same share of every layer; the paper "
        "also removes whole layers and hidden dimensions, and gives every kind a share of its own. Loading data in "
        "proportions that follow the losses is a matter of the loader, and not done here."
    ),
    rows=(230,),
)
