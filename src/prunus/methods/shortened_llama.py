"""Shortened LLaMA, by perplexity."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LossRise
from prunus.parts.granularity import Block
from prunus.parts.schedule import OneShot

shortened_llama = Recipe(
    name="shortened_llama",
    source="Kim et al. 2024, arXiv:2402.02834",
    granularity=Block(),
    criterion=LossRise(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Shortened LLaMA (PPL)",
    use_when="you drop whole layers at once and care for what the model writes more than for its answers to choices",
    avoid_when="several layers can replace each other: `sleb` tries all again after every removal",
    deviations="Without the LoRA or continued training that the paper brings the model back with.",
    rows=(233,),
)
