"""Mean activation."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import MeanActivation
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

mean_activation = Recipe(
    name="mean_activation",
    source="Molchanov et al. 2017, ICLR, arXiv:1611.06440, section 2.2",
    granularity=Channel(),
    criterion=MeanActivation(),
    allocate=GlobalRanking(normalize="l2"),
    schedule=Gradual(power=1.0),
    on="pretrained",
)

card = Card(
    title="Mean activation",
    use_when="you want the plainest criterion that looks at data, without labels",
    avoid_when="activations are signed, or a quiet unit may matter",
    deviations=(
        "The mean of absolute values. The paper removes one feature map at a time with updates in between; here "
        "equal portions."
    ),
    rows=(),
)
