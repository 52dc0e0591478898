"""Pruning from scratch: channel gates over random weights, then training from scratch."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import TargetMean
from prunus.parts.granularity import Channel
from prunus.parts.recover import Scratch
from prunus.parts.schedule import OneShot

pfs = Recipe(
    name="pfs",
    source="Wang et al. 2020, AAAI, arXiv:1909.12579",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.1),
    gate=TargetMean(),
    recover=Scratch(),
)

card = Card(
    title="Pruning from scratch",
    use_when="you want a narrow architecture without training the wide one; Budget(macs=0.5) is met by bisection",
    avoid_when="the network is trained already: its weights are neither trained nor kept",
    deviations=(
        "The last gates count, not those of the epoch with the best validation accuracy. Gates lie on all channels "
        "that can be removed, at least one stays per layer, and making the network wider first is the user's to do. "
        "The network is initialized anew and trained for the rest of the steps."
    ),
    rows=(5,),
)
