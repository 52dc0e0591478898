"""Random sparse network transformation."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Random
from prunus.parts.granularity import Element
from prunus.parts.penalty import GrowingL2
from prunus.parts.schedule import MarkThenCut

rst = Recipe(
    name="rst",
    source="Bai et al. 2022, ICLR, arXiv:2203.04248",
    granularity=Element(),
    criterion=Random(),
    allocate=Uniform(),
    schedule=MarkThenCut(cut=0.5),
    penalty=GrowingL2(every=1),
)

card = Card(
    title="Random sparse network transformation (dual lottery tickets)",
    use_when="any random subnetwork should do, trained out of the dense one",
    avoid_when="you have no steps to train the dense network with",
    deviations=(
        "One density in every layer. The schedule says when the marked weights are removed. RST-Iter, which marks in "
        "five portions, is not part of this recipe."
    ),
    rows=(6,),
)
