"""Taylor expansion on activations."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import CostPenalized
from prunus.parts.criteria import TaylorActivation
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

taylor_activation = Recipe(
    name="taylor_activation",
    source="Molchanov et al. 2017, ICLR, arXiv:1611.06440",
    granularity=Channel(),
    criterion=TaylorActivation(),
    allocate=CostPenalized(),
    schedule=Gradual(end=0.5, power=1.0),
    on="pretrained",
)

card = Card(
    title="Taylor expansion (activations)",
    use_when="you fine-tune while pruning channels, have labels, and want costly layers to lose more",
    avoid_when="there is no loss to differentiate; taylor_fo (same first author, later) needs no activations",
    deviations=(
        "Equal portions every 100 steps instead of one feature map at a time. Costs are multiply-accumulates of a"
        " unit with all coupled slices. Activations where the next layer reads."
    ),
    rows=(71,),
)
