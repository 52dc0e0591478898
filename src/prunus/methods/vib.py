"""Variational information bottleneck for compression."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import Bottleneck
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

vib = Recipe(
    name="vib",
    source="Dai, Zhu & Wipf 2018, ICML, arXiv:1802.10399",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.75),
    gate=Bottleneck(),
)

card = Card(
    title="Variational information bottleneck (VIBNet)",
    use_when="neurons and channels are to be ranked by how much information must pass through them",
    avoid_when="you cannot try a few strengths: the penalty, not the budget, says how much noise units bear",
    deviations=(
        "Units of lowest signal to noise go until the budget is met (the code removes those below 1; what that "
        "keeps is in the history as open). One draw per step for all samples; a term of the penalty is neither "
        "multiplied by the positions of a map nor weighted by layer. The last part of the steps trains what is "
        "left, without noise."
    ),
    rows=(201,),
)
