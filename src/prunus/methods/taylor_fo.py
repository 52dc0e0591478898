"""Taylor first order."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import TaylorWeight
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

taylor_fo = Recipe(
    name="taylor_fo",
    source="Molchanov et al. 2019, CVPR, arXiv:1906.10771",
    granularity=Channel(),
    criterion=TaylorWeight(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.0, end=0.5, every=30, power=1.0),
    on="pretrained",
)

card = Card(
    title="Taylor first order",
    use_when="you fine-tune while pruning channels and have labels",
    avoid_when="there is no loss to differentiate",
    deviations=(
        "On weights, the square of the sum over a filter (the official code sums the squares); the paper's best "
        "variant, on gates behind the normalization, is replace(taylor_fo, criterion=TaylorGate()). Scores are "
        "averaged over the calibration batches at each event; with momentum 0.9 over training batches it is "
        "taylor_momentum."
    ),
    rows=(72,),
)
