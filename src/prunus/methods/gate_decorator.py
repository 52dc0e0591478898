"""Gate decorator."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SummedSensitivity
from prunus.parts.granularity import Channel
from prunus.parts.penalty import TockL1
from prunus.parts.prox import Ticking
from prunus.parts.schedule import Gradual

gate_decorator = Recipe(
    name="gate_decorator",
    source="You et al. 2019, NeurIPS, arXiv:1909.08174",
    granularity=Channel(),
    criterion=SummedSensitivity(),
    allocate=GlobalRanking(),
    schedule=Gradual(end=0.8, every=100, power=1.0),
    penalty=TockL1(),
    prox=Ticking(),
    on="pretrained",
)

card = Card(
    title="Gate decorator (GBN)",
    use_when="the network has batch normalization and labels are at hand; channels compete across the network",
    avoid_when="there is no normalization to read",
    deviations=(
        "In equal portions, every 100 steps: a tock (everything is trained, with an L1 penalty on the gates), a tick "
        "(weights are frozen, gates and the classifier trained), and a pruning by the gates' sensitivities, added up "
        "along the tick. The gates are the scales of normalization themselves. A tick is the last tenth of the steps "
        "before a pruning; the paper's is an epoch, with a tock of many epochs after several ticks. The code's term "
        "for operations, which is zero by default, is left out. Learning rates are yours."
    ),
    rows=(73,),
)
