"""Network trimming."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import NonzeroShare
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

apoz = Recipe(
    name="apoz",
    source="Hu et al. 2016, arXiv:1607.03250",
    granularity=Channel(),
    criterion=NonzeroShare(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Network trimming (APoZ)",
    use_when="the network has ReLUs and you have inputs, but no labels",
    avoid_when="activations are smooth (GELU, SiLU): nothing is ever exactly zero; give NonzeroShare a threshold",
    deviations=(
        "Units are ranked by 1 - APoZ and the budget decides how many go; the paper removes those more than one "
        "standard deviation above the mean of a few chosen layers, and retrains in between. Zeros are counted "
        "where the next layer reads."
    ),
    rows=(),
)
