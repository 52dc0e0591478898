"""HALP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import LatencyKnapsack
from prunus.parts.criteria import TaylorWeight
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

halp = Recipe(
    name="halp",
    source="Shen et al. 2022, NeurIPS, arXiv:2210.06659; HALP: arXiv:2110.10811",
    granularity=Channel(),
    criterion=TaylorWeight(),
    allocate=LatencyKnapsack(),
    schedule=Gradual(begin=0.0, end=0.3, every=320, power=1.0),
    on="pretrained",
)

card = Card(
    title="HALP (latency knapsack)",
    use_when="latency rises in steps with the number of channels, and it is latency that must fall",
    avoid_when="there is no loss to differentiate, or latency does not depend on widths",
    deviations=(
        "A budget in latency goes by this machine's tables of layers (docs/latency.md). For other budgets latency is "
        "modelled by multiply-accumulates in steps of eight channels; LatencyKnapsack(table=...) takes a table and "
        "LatencyKnapsack(measured=True) this machine's, and channels are chosen one by one where the count asks for "
        "it. Portions are equal in units instead of exponential in latency, and scores are averaged over the "
        "calibration batches at each event."
    ),
    rows=(174,),
)
