"""Dual half-space projected gradient (the second only-train-once)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import MixedSalience
from prunus.parts.granularity import Channel
from prunus.parts.penalty import RedundantLasso
from prunus.parts.prox import MarkedHalfSpace
from prunus.parts.schedule import MarkThenCut

dhspg = Recipe(
    name="dhspg",
    source="Chen et al. 2023 (OTOv2), ICLR, arXiv:2303.06862",
    granularity=Channel(),
    criterion=MixedSalience(magnitude=0.0, average=0.5, cosine=-0.5, first=0.0, second=0.0),
    allocate=GlobalRanking(),
    schedule=MarkThenCut(at=0.1, cut=0.8),
    penalty=RedundantLasso(),
    prox=MarkedHalfSpace(),
)

card = Card(
    title="Only train once, second version (DHSPG)",
    use_when="you train from scratch or on, and know how many units are to go: only those are regularized",
    avoid_when="you have no training budget",
    deviations=(
        "Redundant units are those small per entry whose gradients point along them; the official code adds up the "
        "inverse of the size. As many are marked as the budget wants gone, where the code marks 5 % more and stops "
        "when enough are zero. The last event meets the budget exactly, so what has not come to zero by then is cut. "
        "The settings are those for SGD; for Adam the code has RedundantLasso(strength=1e-2, amplify=20, most=1e3)."
    ),
    rows=(221,),
)
