"""Centripetal SGD."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import ClusterLargest
from prunus.parts.granularity import Channel
from prunus.parts.penalty import Centripetal
from prunus.parts.reconstruct import Merge
from prunus.parts.schedule import OneShot

c_sgd = Recipe(
    name="c_sgd",
    source="Ding et al. 2019, CVPR, arXiv:1904.03837",
    granularity=Channel(),
    criterion=ClusterLargest(),
    allocate=Uniform(),
    schedule=OneShot(at=1.0),
    penalty=Centripetal(),
    reconstruct=Merge(),
    on="pretrained",
)

card = Card(
    title="Centripetal SGD",
    use_when="a trained network can be trained on until channels are alike, so that merging them loses nothing",
    avoid_when="there is no training budget: until clusters have met, merging them costs accuracy",
    deviations=(
        "Clusters of channels that live and die together (residual sums) are made of all their weights side by side; "
        "the paper takes those of one layer for its followers. What reads a removed channel goes to the kept one that "
        "its reader sees as most alike, times a fitted number, which is the paper's sum where clusters have met. "
        'Centripetal(cluster="even") is its clustering without weights.'
    ),
    rows=(222,),
)
