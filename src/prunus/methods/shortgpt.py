"""ShortGPT."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import BlockInfluence
from prunus.parts.granularity import Block
from prunus.parts.schedule import OneShot

shortgpt = Recipe(
    name="shortgpt",
    source="Men et al. 2024, arXiv:2403.03853",
    granularity=Block(),
    criterion=BlockInfluence(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="ShortGPT",
    use_when="you drop whole layers of a residual network, above all a language model, without training",
    avoid_when="blocks change the shape of the hidden state, or you must remove less than a block",
    deviations="The budget counts blocks. Scored once, with all blocks in place, as in the paper.",
    rows=(172, 233),
)
