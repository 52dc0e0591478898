"""Learned density per weight."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import LearnedDensity
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

leap = Recipe(
    name="leap",
    source="Yao et al. 2021, arXiv:2105.14636",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.75),
    gate=LearnedDensity(),
    on="pretrained",
)

card = Card(
    title="LEAP (learnable pruning)",
    use_when="a pretrained transformer is fine-tuned for long, and layers should find their own density",
    avoid_when="there are only a few hundred steps: the densities start from one and move slowly",
    deviations=(
        "Single weights; Tile() gives blocks, Channel() rows and Head() heads, one kind at a time. The remaining "
        "share counts weights alike; the official code knows the layers of BERT. No distillation. The budget has "
        "the last word."
    ),
    rows=(176,),
)
