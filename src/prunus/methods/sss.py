"""Sparse structure selection."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import SparseScale
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

sss = Recipe(
    name="sss",
    source="Huang & Wang 2018, ECCV, arXiv:1707.01213",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    gate=SparseScale(),
)

card = Card(
    title="Sparse structure selection",
    use_when="you train from scratch and want channels to switch themselves off, without fine-tuning",
    avoid_when="you have no training budget",
    deviations=(
        "Channels, as the paper has them for VGG; its factors on residual branches are granularity=Branch(), those on "
        "groups of a convolution are not part of it. The paper removes what came to zero, whatever its number "
        "(recorded as open); here the budget decides, and what it removes beyond zeros is not lossless. strength sets "
        "how many become zero."
    ),
    rows=(17,),
)
