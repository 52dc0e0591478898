"""Heads and neurons by hard concrete gates under a Lagrangian."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Lagrangian
from prunus.parts.granularity import Coupled
from prunus.parts.schedule import OneShot

cofi = Recipe(
    name="cofi",
    source="inspired by Xia, Zhong & Chen 2022 (CoFi), ACL, arXiv:2204.00408",
    granularity=Coupled(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.8),
    gate=Lagrangian(),
    on="pretrained",
)

card = Card(
    title="Heads and neurons under a Lagrangian (inspired by CoFi)",
    use_when="you fine-tune a transformer and want heads and feed-forward neurons to find their shares together",
    avoid_when="the network must not be trained",
    deviations=(
        "CoFi gates whole attention and feed-forward layers and hidden dimensions as well, and multiplies the gates "
        "that lie over each other; here every weight is read through the gates of heads or neurons alone. Its "
        "distillation is recover=Distill(layers=(...), throughout=True), layer by layer as you pair them, where CoFi "
        "pairs them anew as it trains. The constraint is on the share of units, as a "
        "budget in units is; CoFi's, on parameters, is gate=Lagrangian(weighs='weights') with Budget(params=...). "
        "Other units that can be removed (channels of convolutions) have gates too."
    ),
    rows=(177,),
)
