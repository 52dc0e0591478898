"""Group Fisher pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import CostNormalized, GlobalRanking
from prunus.parts.criteria import GroupFisher
from prunus.parts.granularity import Coupled
from prunus.parts.schedule import Gradual

group_fisher = Recipe(
    name="group_fisher",
    source="Liu et al. 2021, ICML, arXiv:2108.00708",
    granularity=Coupled(),
    criterion=GroupFisher(),
    allocate=CostNormalized(of=GlobalRanking(), by="memory"),
    schedule=Gradual(begin=0.0, end=0.75, every=25, power=1.0),
    on="pretrained",
)

card = Card(
    title="Group Fisher",
    use_when="channels are coupled (residuals, concatenations, groups) and you can fine-tune while pruning",
    avoid_when="there is no loss to differentiate",
    deviations=(
        "Equal portions every 25 steps, scored on the calibration batches, instead of one channel after every 10 to "
        "25 training batches, scored on these. Divided by the activations that a unit saves; by operations with "
        'replace(group_fisher, allocate=CostNormalized(by="macs")).'
    ),
    rows=(74,),
)
