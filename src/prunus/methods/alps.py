"""ALPS."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import InputWeighted
from prunus.parts.granularity import Element
from prunus.parts.reconstruct import Alternating
from prunus.parts.schedule import OneShot

alps = Recipe(
    name="alps",
    source="Meng, Behdin, Wang & Mazumder 2024, NeurIPS, arXiv:2406.07831",
    granularity=Element(),
    criterion=InputWeighted(),
    allocate=Uniform(),
    reconstruct=Alternating(damp=0.01),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="ALPS",
    use_when="most weights of a trained model go at once, and up to a few hundred products per layer are affordable",
    avoid_when="time matters: SparseGPT takes one factorization and one sweep over a layer",
    deviations=(
        "Within a block, layers are pruned one after the other, each on inputs that the pruned ones before it give; "
        "the criterion is not asked, a layer's number of weights is all that counts. For 2:4, allocate=NofM(2, 4) (n "
        "stay, as in the paper)."
    ),
    rows=(228,),
)
