"""Layers by segments of alike representations."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import SegmentedFlow
from prunus.parts.granularity import Block
from prunus.parts.schedule import OneShot

layer_segments = Recipe(
    name="layer_segments",
    source="inspired by Lu et al. 2024, arXiv:2406.07929",
    granularity=Block(),
    criterion=SegmentedFlow(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Layer segments (inspired by Lu et al. 2024)",
    use_when="you drop whole blocks and want one left of every stretch that computes alike",
    avoid_when="calibration batches are of one sample: representations are compared over samples",
    deviations=(
        "Segments by CKA, blocks inside by their synaptic flow in the whole network; the paper compares the flow of "
        "the networks that candidates would leave. Fine-tune afterwards, as the paper does."
    ),
    rows=(158,),
)
