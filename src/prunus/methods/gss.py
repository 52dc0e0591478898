"""Guided structured sparsity."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Channel
from prunus.parts.penalty import GuidedLasso
from prunus.parts.schedule import OneShot

gss = Recipe(
    name="gss",
    source="Torfi et al. 2018, arXiv:1802.09902",
    granularity=Channel(),
    criterion=L2Norm(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    penalty=GuidedLasso(),
)

card = Card(
    title="Guided structured sparsity (GSS)",
    use_when="group lasso alone starves whole layers",
    avoid_when="filters of a layer are nearly equal: the guide's gradient is then very large",
    deviations=(
        "The budget says how many filters go, in the official code a threshold on single weights does. The attention "
        "that guides is the variance of filter energies, as in the official code; there is no module that weighs "
        "channels. The first half of the steps trains with the penalty, the second without it."
    ),
    rows=(194,),
)
