"""Block movement pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import SoftMovementGate
from prunus.parts.granularity import Tile
from prunus.parts.schedule import OneShot

block_movement = Recipe(
    name="block_movement",
    source="Lagunas et al. 2021, EMNLP, arXiv:2109.04838",
    granularity=Tile((4, 4, 1, 1)),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.9),
    gate=SoftMovementGate(strength=20.0),
    on="pretrained",
)

card = Card(
    title="Block movement pruning",
    use_when="a transformer is fine-tuned, and your kernels skip blocks of weights",
    avoid_when="nothing of yours runs block-sparse weights: take whole units, granularity=Coupled()",
    deviations=(
        "One score per block, whose gradient is the sum of those of its weights. Blocks are 4x4, which small layers "
        "divide into; the paper's best are 32x32 in attention, Tile((32, 32, 1, 1)), and whole rows and columns in "
        "the feed-forward layers, which here are units: granularity=Coupled() scores heads and neurons. Penalties "
        "of the two kinds have one strength. The last event meets the budget; see movement_soft."
    ),
    rows=(110, 224),
)
