"""Half-space projection."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Channel
from prunus.parts.penalty import SilentLasso
from prunus.parts.prox import HalfSpace
from prunus.parts.schedule import OneShot

oto = Recipe(
    name="oto",
    source="Chen et al. 2021, NeurIPS, arXiv:2107.07467",
    granularity=Channel(),
    criterion=L2Norm(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    penalty=SilentLasso(),
    prox=HalfSpace(),
)

card = Card(
    title="Only train once (half-space projection)",
    use_when="you train from scratch and want whole units to become exactly zero, without fine-tuning",
    avoid_when="you have no training budget",
    deviations=(
        "The first version: group lasso by its subgradient, then also half-space projections in the second "
        "half of the steps. The budget decides how many units go, smallest first, and what it removes beyond "
        "zeros is not lossless. The later versions (DHSPG, HESSO, with several saliencies) and CHEX are not "
        "part of it."
    ),
    rows=(221,),
)
