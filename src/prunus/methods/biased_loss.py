"""Loss preservation, biased to small weights."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import BiasedLoss
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

biased_loss = Recipe(
    name="biased_loss",
    source="Lubana & Dick 2021, ICLR, arXiv:2009.11839",
    granularity=Channel(),
    criterion=BiasedLoss(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.0, end=0.2, power=1.0),
)

card = Card(
    title="Loss preservation, biased to small weights",
    use_when="you prune filters early in training, in rounds",
    avoid_when="the network is at a minimum already: first-order changes are small there",
    deviations=(
        "Rounds of equal portions in the first fifth of the steps, where the paper prunes once per epoch. "
        "Gradients are taken at the event, not tracked over the batches before it."
    ),
    rows=(91,),
)
