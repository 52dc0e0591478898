"""Energy-constrained compression."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ReaderEnergy
from prunus.parts.granularity import Channel
from prunus.parts.prox import CostQuota
from prunus.parts.schedule import OneShot

ecc = Recipe(
    name="ecc",
    source="Yang, Zhu & Liu 2019, CVPR, arXiv:1812.01803",
    granularity=Channel(),
    criterion=ReaderEnergy(),
    allocate=GlobalRanking(normalize="mean"),
    schedule=OneShot(at=0.8),
    prox=CostQuota(),
    on="pretrained",
)

card = Card(
    title="Energy-constrained compression (ECC)",
    use_when="a network is trained on under a ceiling on its cost, and each layer's width is to be found meanwhile",
    avoid_when="there is no training budget, or the cost is no product of neighbouring widths",
    deviations=(
        "The cost is multiply-accumulates, which are bilinear exactly; CostQuota(by='clock') fits the paper's bilinear "
        "model to measurements of smaller models: in time on this machine, in energy with a Task(clock=...) that reads "
        "a meter. The ceiling is what the budget leaves of the model as it is at first. Distillation, half of the "
        "official loss, is recover=Distill(weight=0.5, throughout=True). The last event meets the budget exactly, "
        "units that came to zero first. Widths fall by pace at most in a step: runs of a few hundred want it larger."
    ),
    rows=(105,),
)
