"""BiP: pruning as bi-level optimization."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import BiLevel
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

bip = Recipe(
    name="bip",
    source="Zhang et al. 2022, NeurIPS, arXiv:2210.04092",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=OneShot(at=1.0),
    gate=BiLevel(),
    on="pretrained",
)

card = Card(
    title="BiP",
    use_when="one training run is to bring both mask and weights, with no retraining afterwards",
    avoid_when="weights must stay as they are while the mask is learned: take hydra",
    deviations=(
        "Mask and weights step together by the gradients of one batch; the paper alternates, and takes another "
        "batch for each. The lower problem's regularization is the weight decay of your optimizer. Channels are "
        "another granularity: replace(bip, granularity=Channel())."
    ),
    rows=(104,),
)
