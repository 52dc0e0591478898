"""MorphNet, shrinking for parameters."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import NormScale
from prunus.parts.granularity import Channel
from prunus.parts.penalty import ResourceL1
from prunus.parts.schedule import OneShot

morphnet_size = Recipe(
    name="morphnet_size",
    source="Gordon et al. 2018, CVPR, arXiv:1711.06798",
    granularity=Channel(reduce="max"),
    criterion=NormScale(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=ResourceL1(currency="params"),
)

card = Card(
    title="MorphNet (model size)",
    use_when="the network has batch normalization and has to become smaller rather than faster",
    avoid_when="there is no normalization to read, or accuracy counts and size does not",
    deviations=("As `morphnet`, with parameters in the place of multiply-accumulates."),
    rows=(16,),
)
