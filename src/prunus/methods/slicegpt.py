"""SliceGPT, with one rotation."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import SecondMoment
from prunus.parts.granularity import Width
from prunus.parts.prepare import Rotate
from prunus.parts.schedule import OneShot

slicegpt = Recipe(
    name="slicegpt",
    source="inspired by Ashkboos et al. 2024 (SliceGPT), ICLR, arXiv:2401.15024",
    granularity=Width(),
    criterion=SecondMoment(),
    allocate=Uniform(),
    schedule=OneShot(),
    prepare=Rotate(),
    on="pretrained",
)

card = Card(
    title="Slices of the rotated residual stream (inspired by SliceGPT)",
    use_when="a transformer with norms before its layers is to become narrower from a few unlabelled batches",
    avoid_when="norms are added to the stream (BERT), or no dimension carries little: a flat spectrum slices badly",
    formula="eigenvalues of sum over norms of E[u u^T]",
    deviations=(
        "One rotation per stream; SliceGPT has one for every layer, and matrices on the shortcuts to pass between "
        "them, so it keeps more of each layer and has more parameters. The head is sliced with the stream, which the "
        "paper leaves whole; every position counts, padding too; the width is no multiple of 8 unless "
        "granularity=Width(round_to=8)."
    ),
    rows=(231,),
)
