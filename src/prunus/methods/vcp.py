"""Variational channel pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import GaussianScale
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

vcp = Recipe(
    name="vcp",
    source="Zhao et al. 2019, CVPR",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    gate=GaussianScale(),
)

card = Card(
    title="Variational channel pruning (VCP)",
    use_when="channels are to fall silent while training, so that no retraining is needed",
    avoid_when="there is no training: without it every factor is 1",
    deviations=(
        "The factor multiplies what reads a channel, so networks without normalization have it too; in the paper it "
        "is the scale of batch normalization, and multiplies the shift. Posteriors concentrated at zero go first, "
        "in the order of the paper's rule, until the budget is met; what the rule would keep by itself is in the "
        "history as open. Its thresholds and the prior's width are ours."
    ),
    rows=(38,),
)
