"""Activations and distillation."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import MeanActivation
from prunus.parts.granularity import Channel
from prunus.parts.recover import Distill
from prunus.parts.schedule import OneShot

activation_distilled = Recipe(
    name="activation_distilled",
    source="inspired by Aghli & Ribeiro 2021, CVPR Workshops, pages 3191-3198",
    granularity=Channel(),
    criterion=MeanActivation(),
    allocate=Uniform(),
    schedule=OneShot(),
    recover=Distill(),
    on="pretrained",
)

card = Card(
    title="Activations and distillation (inspired by Aghli & Ribeiro 2021)",
    use_when="you prune by activations and have the dense network as a teacher for what follows",
    avoid_when="you want the published losses: the paper matches features by their cosine",
    deviations=(
        "The paper prunes chosen layers of a ResNet by their activations and distils into the others; its statistic "
        "could not be verified. Here the mean of absolute activations, all layers (give Channel(exclude=...) those "
        "that stay), and the distillation of outputs."
    ),
    rows=(95,),
)
