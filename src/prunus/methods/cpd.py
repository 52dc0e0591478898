"""Comb, prune, distill."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import TaylorWeight
from prunus.parts.granularity import Coupled
from prunus.parts.recover import Distill
from prunus.parts.schedule import OneShot

cpd = Recipe(
    name="cpd",
    source="Schmitt, Liu, Zheng, Zhang & Stiefelhagen 2024, ITSC, arXiv:2408.03046",
    granularity=Coupled(),
    criterion=TaylorWeight(),
    allocate=GlobalRanking(),
    recover=Distill(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="CPD (comb, prune, distill)",
    use_when="you want a smaller network of any architecture and fine-tune it towards the original's outputs",
    avoid_when="you train nothing afterwards, or the outputs are no class scores",
    deviations=(
        "Combing is the dependency engine's. The Hessian-based importance is the squared first-order term here (its "
        "empirical Fisher form). The paper prunes step by step while it distils; this prunes once and distils after."
    ),
    rows=(168,),
)
