"""Early-bird tickets."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import NormScale
from prunus.parts.granularity import Channel
from prunus.parts.penalty import ScaleL1
from prunus.parts.schedule import EarlyBird

early_bird = Recipe(
    name="early_bird",
    source="You et al. 2020, ICLR, arXiv:1909.11957",
    granularity=Channel(),
    criterion=NormScale(),
    allocate=GlobalRanking(),
    schedule=EarlyBird(),
    penalty=ScaleL1(),
)

card = Card(
    title="Early-bird tickets",
    use_when="you train a network with batch normalization from scratch and want most of the training to be cheap",
    avoid_when="there is no normalization to read, or the network is trained already",
    deviations=(
        "Masks are drawn at even distances in the first half of the steps, whatever an epoch is, and by the end of it "
        "they are carried out even if they still move. Coupled channels are worth the sum of their scales. The ticket "
        "trains on from the weights that it was drawn with, and the penalty stays on. Low-precision search is left out."
    ),
    rows=(122,),
)
