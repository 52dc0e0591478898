"""SliceGPT."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import InOrder
from prunus.parts.granularity import Width
from prunus.parts.prepare import Rotate
from prunus.parts.schedule import OneShot

slicegpt = Recipe(
    name="slicegpt",
    source="Ashkboos et al. 2024, ICLR, arXiv:2401.15024",
    granularity=Width(),
    criterion=InOrder(),
    allocate=Uniform(),
    schedule=OneShot(),
    prepare=Rotate(),
    on="pretrained",
)

card = Card(
    title="SliceGPT",
    use_when="a transformer with norms before its layers is to become narrower from a few unlabelled batches",
    avoid_when="norms are added to the stream (BERT), or no dimension carries little: a flat spectrum slices badly",
    formula="eigenvectors of E[u u^T] at every norm, the largest eigenvalues first",
    deviations=(
        "All rotations are found in the dense model; the code finds each in the model sliced so far, from the "
        "stream before its norm. The last place is sliced with the others, and the head with it, which the code leaves "
        "whole by default; every position counts, padding too; the width is no multiple of 8 unless "
        "granularity=Width(round_to=8). One rotation for the whole stream, without maps on the shortcuts: "
        'prepare=Rotate(per="stream"), criterion=SecondMoment().'
    ),
    rows=(231,),
)
