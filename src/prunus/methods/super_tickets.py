"""Super tickets: lightly pruned transformers, rewound."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import GateSensitivity
from prunus.parts.granularity import Coupled
from prunus.parts.schedule import Rounds

super_tickets = Recipe(
    name="super_tickets",
    source="Liang et al. 2021, ACL, arXiv:2105.12002",
    granularity=Coupled(),
    criterion=GateSensitivity(),
    allocate=GlobalRanking(normalize="l2"),
    schedule=Rounds(per_round=0.99),
    on="pretrained",
)

card = Card(
    title="Super tickets",
    use_when=(
        "a pretrained transformer is fine-tuned to a small data set, and a tenth to a third of it may go for a "
        "better one"
    ),
    avoid_when="attention is torch.nn.MultiheadAttention, whose inner products are not seen, or much has to go",
    deviations=(
        "Fine-tune, prune once by the expected sensitivity of heads and hidden neurons, go back to the pretrained "
        "weights, and fine-tune again; half of the steps each. The paper prunes whole feed-forward layers beside "
        "heads, where hidden neurons go here. The sensitivities of every group are divided by their Euclidean norm, "
        "as the paper does for the heads of a layer. Sharing tickets among tasks is not in here."
    ),
    rows=(224,),
)
