"""Provable filter pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ErrorGuarantee
from prunus.parts.criteria import ReaderSensitivity
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

pfp = Recipe(
    name="pfp",
    source="Liebenwein et al. 2020, ICLR, arXiv:1911.07412",
    granularity=Channel(),
    criterion=ReaderSensitivity(),
    allocate=ErrorGuarantee(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Provable filter pruning (PFP)",
    use_when="you have some unlabelled inputs and want densities that give every layer the same error bound",
    avoid_when="the calibration set is large: every product of every layer is compared",
    deviations=(
        "The deterministic variant: the channels with the largest sensitivities stay, and nothing is reweighted. "
        "Channels coupled by residual connections take the largest sensitivity of any of their readers."
    ),
    rows=(80,),
)
