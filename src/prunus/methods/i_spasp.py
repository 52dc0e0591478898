"""i-SpaSP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import SparseRecovery
from prunus.parts.criteria import SummedActivation
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

i_spasp = Recipe(
    name="i_spasp",
    source="Wolfe & Kyrillidis 2022, L4DC, arXiv:2112.04905",
    granularity=Channel(),
    criterion=SummedActivation(),
    allocate=SparseRecovery(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="i-SpaSP",
    use_when="you want hidden neurons or channels of two-layer blocks chosen together, from unlabelled batches",
    avoid_when="activations are not behind a ReLU: their sums say little then",
    deviations=(
        "Outputs are taken before the normalization behind the block. All blocks are selected before any is pruned; "
        "the official code fine-tunes after each."
    ),
    rows=(85,),
)
