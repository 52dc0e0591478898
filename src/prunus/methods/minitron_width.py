"""Minitron, in width."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import AggregatedActivation
from prunus.parts.granularity import Coupled
from prunus.parts.recover import Distill
from prunus.parts.schedule import OneShot

minitron_width = Recipe(
    name="minitron_width",
    source="Muralidharan et al. 2024, NeurIPS, arXiv:2407.14679",
    granularity=Coupled(),
    criterion=AggregatedActivation(),
    allocate=Uniform(),
    schedule=OneShot(),
    recover=Distill(temperature=1.0, weight=1.0),
    on="pretrained",
)

card = Card(
    title="Minitron (width)",
    use_when="a regular, narrower transformer is wanted, and there is training data to distil on",
    avoid_when="there is nothing to train with: widths are cut without any compensation",
    deviations=(
        "The same share of heads, neurons and embedding channels; the paper searches over such shapes. Streams with "
        "LayerNorm stay whole unless granularity=Coupled(exact=False). Distillation of outputs alone, as the paper "
        "recommends for width; layers are Distill(layers=...)."
    ),
)
