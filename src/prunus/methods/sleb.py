"""SLEB."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import BackwardElimination
from prunus.parts.granularity import Block
from prunus.parts.schedule import OneShot

sleb = Recipe(
    name="sleb",
    source="Song et al. 2024, ICML, arXiv:2402.09025",
    granularity=Block(),
    criterion=BackwardElimination(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="SLEB (blocks by greedy elimination)",
    use_when="you drop whole layers of a language model without training, and can run it once per layer and removal",
    avoid_when="the model has many layers and is slow to run: `shortgpt` scores all blocks in one pass",
    deviations=(
        "Losses on all calibration batches; the paper takes 128 sequences. The same order as by perplexity where "
        "batches hold equally many tokens."
    ),
    rows=(233,),
)
