"""Trainability preserving pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.penalty import TrainabilityPreserving
from prunus.parts.schedule import MarkThenCut

tpp = Recipe(
    name="tpp",
    source="Wang & Fu 2023, ICLR, arXiv:2207.12534",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=MarkThenCut(cut=0.6),
    penalty=TrainabilityPreserving(),
    on="pretrained",
)

card = Card(
    title="Trainability preserving pruning (TPP)",
    use_when="the network is trained, much of it goes, and what stays has to learn again",
    avoid_when="layers are so wide that the products of all pairs of filters cost too much at every step",
    deviations=(
        "One density in every layer, where the paper sets ratios by hand. Coupled filters of residual sums are pruned "
        "too, as one. The schedule says when marked filters are cut; the official code first zeroes them layer by "
        "layer, 100 steps apart."
    ),
    rows=(101,),
)
