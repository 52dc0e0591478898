"""Filters in the Kronecker-factored Fisher information."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import KroneckerFilter
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

c_obs = Recipe(
    name="c_obs",
    source="Wang et al. 2019, ICML, arXiv:1905.05934",
    granularity=Channel(),
    criterion=KroneckerFilter(compensated=True),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.0),
    on="pretrained",
)

card = Card(
    title="C-OBS (the baseline of EigenDamage)",
    use_when="filters of one layer are correlated and the network has few outputs",
    avoid_when="convolutions are grouped (their channels are skipped), or there are thousands of outputs",
    deviations=(
        "EigenDamage's own pruning in the Kronecker eigenbasis, which puts three layers in the place of one, is not "
        "in here: this is its C-OBS, and with KroneckerFilter(compensated=False) its C-OBD; the rule without the "
        "update of the filters that stay. Biases are left out of the factors; all outputs are differentiated, where "
        "the official code draws labels from the model."
    ),
    rows=(222,),
)
