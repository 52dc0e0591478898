"""Head importance."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import GateSensitivity
from prunus.parts.granularity import Head
from prunus.parts.schedule import Iterative

head_importance = Recipe(
    name="head_importance",
    source="Michel et al. 2019, NeurIPS, arXiv:1905.10650",
    granularity=Head(),
    criterion=GateSensitivity(),
    allocate=GlobalRanking(normalize="l2"),
    schedule=Iterative(rounds=10, spacing="linear"),
    on="pretrained",
)

card = Card(
    title="Head importance",
    use_when="you remove attention heads of a trained transformer and have labels",
    avoid_when="attention is torch.nn.MultiheadAttention, whose inner products are not seen",
    deviations=(
        "Each head of a layer competes with all others, a tenth of the budget at a time, scored anew. At least "
        "one head of a layer stays."
    ),
    rows=(92,),
)
