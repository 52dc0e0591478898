"""MorphNet, shrinking for multiply-accumulates."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import NormScale
from prunus.parts.granularity import Channel
from prunus.parts.penalty import ResourceL1
from prunus.parts.schedule import OneShot

morphnet = Recipe(
    name="morphnet",
    source="Gordon et al. 2018, CVPR, arXiv:1711.06798",
    granularity=Channel(reduce="max"),
    criterion=NormScale(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=ResourceL1(),
)

card = Card(
    title="MorphNet (FLOPs)",
    use_when="the network has batch normalization and its widths should follow from what they cost",
    avoid_when="there is no normalization to read, or accuracy counts and cost does not",
    deviations=(
        "The shrinking step alone: the expansion of all widths by one factor, which makes a larger network and is no "
        "pruning, and the repetition of both, are left out. The budget says how many channels go, in the paper a "
        "threshold on |gamma| does. The first half of the steps trains with the penalty, the second without it. The "
        "paper trains the found widths from scratch."
    ),
    rows=(16,),
)
