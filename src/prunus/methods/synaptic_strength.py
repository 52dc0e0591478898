"""Synaptic strength (DSS)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SynapticStrength
from prunus.parts.granularity import Tile
from prunus.parts.penalty import StrengthL1
from prunus.parts.schedule import OneShot

synaptic_strength = Recipe(
    name="synaptic_strength",
    source="Lin et al. 2018, NeurIPS, arXiv:1811.02454",
    granularity=Tile((1, 1, 0, 0), skip_last=True),
    criterion=SynapticStrength(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=StrengthL1(),
    on="pretrained",
)

card = Card(
    title="Synaptic strength (DSS)",
    use_when="convolutions are fed by batch normalizations, and single connections between channels may go",
    avoid_when="there is no batch normalization before the layers, or you need a smaller dense network",
    deviations=(
        "The first half of the steps trains with the L1 penalty on the strengths, the second without it. Layers that "
        "no normalization feeds (the first one) stay dense, and so does the classifier; after a residual sum the "
        "normalization declared last counts."
    ),
    rows=(141,),
)
