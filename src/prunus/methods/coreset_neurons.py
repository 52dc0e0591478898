"""Coreset neuron pruning (sampling alone)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import CoresetSampling
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

coreset_neurons = Recipe(
    name="coreset_neurons",
    source="Mussay et al. 2020, ICLR, arXiv:1907.04018",
    granularity=Channel(),
    criterion=CoresetSampling(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Coreset neuron pruning (sampling alone)",
    use_when="you prune neurons of a trained relu network without data, and fine-tune",
    avoid_when="the network must work without fine-tuning: what stays is not reweighted here",
    deviations=(
        "Neurons are drawn without replacement, so the count is exact; the paper draws with replacement and "
        "divides by the probabilities, layer by layer from the top."
    ),
    rows=(87,),
)
