"""Network slimming."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import NormScale
from prunus.parts.granularity import Channel
from prunus.parts.penalty import ScaleL1
from prunus.parts.schedule import OneShot

network_slimming = Recipe(
    name="network_slimming",
    source="Liu et al. 2017, ICCV, arXiv:1708.06519",
    granularity=Channel(),
    criterion=NormScale(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=ScaleL1(),
)

card = Card(
    title="Network slimming",
    use_when="the network has batch normalization and you train it anyway",
    avoid_when="there is no normalization to read, or the model must not be trained",
    deviations=(
        "Keeps at least one channel per layer (the official code can delete a layer whole), and the channel on the "
        "threshold, which the official code removes. Coupled channels are worth the sum of their scales. The first "
        "half of the steps trains with the penalty, the second fine-tunes without it."
    ),
    rows=(37,),
)
