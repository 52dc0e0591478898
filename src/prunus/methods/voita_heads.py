"""Heads by hard concrete gates."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import HardConcrete
from prunus.parts.granularity import Head
from prunus.parts.schedule import OneShot

voita_heads = Recipe(
    name="voita_heads",
    source="Voita et al. 2019, ACL, arXiv:1905.09418",
    granularity=Head(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.8),
    gate=HardConcrete(strength=0.1, beta=0.33),
    on="pretrained",
)

card = Card(
    title="Heads by hard concrete gates (Voita et al.)",
    use_when="a trained transformer has heads that do little, and you can train it on for a while",
    avoid_when="heads are few or large: the rest of the network is left as it is",
    deviations=(
        "The paper varies the strength to get fewer or more heads; here the budget says how many, and the gates' "
        'own choice is the record "open". All heads that can be removed have a gate (the paper: those of the '
        "encoder, or all attentions). Gates start near log-odds of 0 (official code: Xavier-uniform ones)."
    ),
    rows=(109,),
)
