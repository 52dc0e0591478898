"""L1 filter pruning (PFEC)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

l1_filter = Recipe(
    name="l1_filter",
    source="Li et al. 2017, ICLR, arXiv:1608.08710",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="L1 filter pruning (PFEC)",
    use_when="you want a smaller, faster convolutional network without data, then fine-tune",
    avoid_when="layers differ in sensitivity: the paper sets ratios by hand after a scan",
    deviations="Coupled filters (residual connections) are scored by the sum of their norms.",
    rows=(69,),
)
