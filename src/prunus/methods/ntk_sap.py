"""NTK-SAP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import KernelSaliency
from prunus.parts.granularity import Element
from prunus.parts.schedule import Iterative

ntk_sap = Recipe(
    name="ntk_sap",
    source="Wang, Li & Sun 2023, ICLR, arXiv:2304.02840",
    granularity=Element(),
    criterion=KernelSaliency(),
    allocate=GlobalRanking(),
    schedule=Iterative(rounds=100),
)

card = Card(
    title="NTK-SAP",
    use_when="you prune before training, without data, whatever the weights are drawn to be",
    avoid_when=(
        "runs are expensive (three per round in float64), or the network is small or initialized with biases, where "
        "one draw per round is too noisy and layers collapse: KernelSaliency(draws=8)"
    ),
    deviations=(
        "Draws weights by the modules' own reset_parameters, inputs as many as the criterion's samples in one "
        "batch, where the official code takes as many as its calibration set. The number of rounds is the paper's"
        " to tune."
    ),
    rows=(211,),
)
