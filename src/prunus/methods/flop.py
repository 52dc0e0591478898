"""Ranks by hard concrete gates under a Lagrangian."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Lagrangian
from prunus.parts.granularity import Rank
from prunus.parts.prepare import Factorize
from prunus.parts.schedule import OneShot

flop = Recipe(
    name="flop",
    source="Wang, Wohlwend & Lei 2020, EMNLP, arXiv:1910.04732",
    granularity=Rank(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.8),
    gate=Lagrangian(beta=1.0),
    prepare=Factorize(),
    on="pretrained",
)

card = Card(
    title="FLOP (factorized low-rank pruning)",
    use_when="layers are large and you can train: components of W = P diag(g) Q are gated towards a given share",
    avoid_when="you can only spare a little: below about half of the components a layer is larger than it was",
    deviations=(
        "Layers are factorized by their singular values (the paper trains factors from scratch, or factorizes). The "
        "share is of components; Lagrangian(weighs='weights') takes it over weights, for a budget in parameters. "
        "Adaptive embeddings and softmaxes are not among the layers. The final event keeps the likeliest components "
        "of the whole network, exactly to the budget; the official code rounds per layer."
    ),
    rows=(108,),
)
