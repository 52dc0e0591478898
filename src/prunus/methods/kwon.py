"""The fast post-training pruning framework for transformers."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import CostNormalized, Rearranged
from prunus.parts.criteria import GroupFisher
from prunus.parts.granularity import Coupled
from prunus.parts.reconstruct import MaskRescale
from prunus.parts.schedule import OneShot

kwon = Recipe(
    name="kwon",
    source="Kwon et al. 2022, NeurIPS, arXiv:2204.09656",
    granularity=Coupled(),
    criterion=GroupFisher(),
    allocate=Rearranged(of=CostNormalized()),
    reconstruct=MaskRescale(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Post-training pruning for transformers (Kwon et al.)",
    use_when="you remove heads and neurons of a fine-tuned transformer in minutes, to a budget of multiply-accumulates",
    avoid_when="you can afford training afterwards, or have no labels",
    deviations=(
        "Mask search ranks heads and neurons by Fisher information per multiply-accumulate; the code tries every "
        "number of heads and fills the rest with neurons, which is the same but for the last units. Scales are fitted "
        "to the layer's own output, not to the unpruned network's with its residual; a layer whose scales run wild is "
        "left unscaled, where the code stops."
    ),
    rows=(125,),
)
