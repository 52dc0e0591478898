"""Taylor first order with momentum."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import MomentumTaylor
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

taylor_momentum = Recipe(
    name="taylor_momentum",
    source="Molchanov et al. 2019, CVPR, arXiv:1906.10771",
    granularity=Channel(),
    criterion=MomentumTaylor(momentum=0.9),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.0, end=0.5, every=30, power=1.0),
    on="pretrained",
)

card = Card(
    title="Taylor first order, accumulated",
    use_when="you fine-tune while pruning channels and want to score by the very batches you train on",
    avoid_when="there is no training to gather scores from: take taylor_fo",
    deviations=(
        "On weights, so that networks without normalizations have a score; the paper's best variant, on gates behind "
        "the normalization, is replace(taylor_momentum, criterion=MomentumTaylorGate()). The average runs over single "
        "batches, where the official code first averages those between two prunings. Sparsity grows in equal portions "
        "every 30 steps, the paper removes a fixed number of neurons."
    ),
    rows=(72,),
)
