"""Channel exploration."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LeverageScore
from prunus.parts.gate import Dormant
from prunus.parts.granularity import Channel
from prunus.parts.growth import SpanResidual
from prunus.parts.schedule import Explored

chex = Recipe(
    name="chex",
    source="Hou et al. 2022, CVPR, arXiv:2203.15794",
    granularity=Channel(),
    criterion=LeverageScore(),
    allocate=GlobalRanking(),
    schedule=Explored(),
    grow=SpanResidual(),
    gate=Dormant(),
)

card = Card(
    title="CHEX (channel exploration)",
    use_when="a convolutional network with normalizations is trained from scratch and finds its widths on the way",
    avoid_when="there is no normalization, or the network is trained already",
    deviations=(
        "Channels are explored over fixed fractions of the run instead of every two of 250 epochs. Channels that wait "
        "get no gradient, but the decay and the momentum of your optimizer go on there. Ranks, residuals and scales "
        "are those of coupled channels, where the paper leaves the ends of residual branches alone."
    ),
    rows=(221,),
)
