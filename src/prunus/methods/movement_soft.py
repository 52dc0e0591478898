"""Soft movement pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import SoftMovementGate
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

movement_soft = Recipe(
    name="movement_soft",
    source="Sanh, Wolf & Rush 2020, NeurIPS, arXiv:2005.07683",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.9),
    gate=SoftMovementGate(),
    on="pretrained",
)

card = Card(
    title="Soft movement pruning",
    use_when="a network is fine-tuned to another task, and every layer may find its own share",
    avoid_when="you cannot try a few strengths: the penalty, not the budget, says how much goes while training",
    deviations=(
        "A threshold on the scores and a penalty decide what is masked while training, as in the paper; what that "
        "would keep is in the history as open. The last event keeps the units of highest score over the whole "
        "network, exactly to the budget, and the last tenth of the steps trains these. Set "
        "SoftMovementGate(strength=...) so that the two agree. Distillation is recover=Distill(throughout=True)."
    ),
    rows=(110,),
)
