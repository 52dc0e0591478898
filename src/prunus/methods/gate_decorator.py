"""Gate decorator."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ScaleSensitivity
from prunus.parts.granularity import Channel
from prunus.parts.schedule import Gradual

gate_decorator = Recipe(
    name="gate_decorator",
    source="You et al. 2019, NeurIPS, arXiv:1909.08174",
    granularity=Channel(),
    criterion=ScaleSensitivity(),
    allocate=GlobalRanking(),
    schedule=Gradual(end=0.5, power=1.0),
    on="pretrained",
)

card = Card(
    title="Gate decorator (GBN), criterion only",
    use_when="the network has batch normalization and labels are at hand; channels compete across the network",
    avoid_when="there is no normalization to read",
    deviations=(
        "The gate sensitivity and the group pruning, in equal portions while training. Without the Tick-Tock "
        "schedule (gates trained alone, then everything with an L1 penalty on them)."
    ),
    rows=(73,),
)
