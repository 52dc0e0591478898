"""Super tickets: lightly pruned transformers, rewound."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import GateSensitivity
from prunus.parts.granularity import Branch, Head, Joint
from prunus.parts.schedule import Rounds

super_tickets = Recipe(
    name="super_tickets",
    source="Liang et al. 2021, ACL, arXiv:2105.12002",
    granularity=Joint(of=(Head(), Branch()), apart=True),
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
        "Fine-tune, prune once by the expected sensitivity of heads and of whole feed-forward layers, go back to the "
        "pretrained weights, and fine-tune again; half of the steps each. The sensitivities of every group are divided "
        "by their Euclidean norm: of the heads of a layer, as in the paper, and of all feed-forward layers together. A "
        "head and a layer count as one unit each; with Budget(params=...) as what they hold. "
        "Sharing tickets among tasks is not in here."
    ),
    rows=(224,),
)
