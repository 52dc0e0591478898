"""Channels and singular components, pruned together by one Taylor score."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import TaylorWeight
from prunus.parts.granularity import Channel
from prunus.parts.prepare import Factorize
from prunus.parts.schedule import OneShot

channels_and_ranks = Recipe(
    name="channels_and_ranks",
    source="inspired by Li et al. 2021 (CC), CVPR, arXiv:2105.11228; score: Molchanov et al. 2019, arXiv:1906.10771",
    granularity=Channel(),
    criterion=TaylorWeight(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    prepare=Factorize(),
    on="pretrained",
)

card = Card(
    title="Channels and ranks together (inspired by CC)",
    use_when="you do not want to choose between narrower layers and layers of lower rank",
    avoid_when="you can only afford a little: below about half of the components a layer is larger than it was",
    deviations=(
        "CC sums squared products of gradient and change over single weights, chooses greedily with a look ahead, and "
        "gives every layer a rate by its sensitivity. Here a unit, channel or component, is worth the squared first-"
        "order change of the loss, and all of them are ranked once and globally. Densities are relative to the "
        "factorized network, which is larger than the one given."
    ),
    rows=(135,),
)
