"""Shortened LLaMA, by first-order sensitivity."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ConnectionSensitivity
from prunus.parts.granularity import Block, Middle
from prunus.parts.schedule import OneShot

shortened_llama_taylor = Recipe(
    name="shortened_llama_taylor",
    source="Kim et al. 2024, arXiv:2402.02834",
    granularity=Middle(of=Block()),
    criterion=ConnectionSensitivity(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Shortened LLaMA (Taylor+)",
    use_when="you drop whole layers at once and have a loss to differentiate",
    avoid_when="the model does not fit in memory with its gradients",
    formula="sum over the block's matrices of |w dL/dw|",
    deviations=(
        "The share of the layers that stays at both ends gives the 4 and 2 of the paper for 32 layers. The gradient "
        "is averaged over batches before absolute values are taken. Without the LoRA or continued training that "
        "follows."
    ),
    rows=(233,),
)
