"""3SP (single-shot structured pruning)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import CostNormalized
from prunus.parts.criteria import UnitSensitivity
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

structured_snip = Recipe(
    name="structured_snip",
    source="van Amersfoort et al. 2020, arXiv:2007.00389",
    granularity=Channel(),
    criterion=UnitSensitivity(),
    allocate=CostNormalized(),
    schedule=OneShot(),
)

card = Card(
    title="3SP (single-shot structured pruning)",
    use_when="you prune channels before training and want the speed-up from the first step",
    avoid_when="sparsity is extreme, or a layer is much costlier than the others: it may keep a single channel",
    deviations=(
        "Sensitivity per multiply-accumulate of the network as it is; allocate=GlobalRanking() leaves the cost "
        "out. Scores in evaluation mode."
    ),
    rows=(214,),
)
