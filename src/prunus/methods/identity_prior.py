"""Spectral-normalized identity prior."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ResidualNorm
from prunus.parts.granularity import Branch
from prunus.parts.penalty import SpectralExcess
from prunus.parts.schedule import Gradual

identity_prior = Recipe(
    name="identity_prior",
    source="inspired by Lin et al. 2020 (SNIP), Findings of EMNLP, arXiv:2010.01791",
    granularity=Branch(),
    criterion=ResidualNorm(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.0, end=0.6, every=100, power=1.0),
    penalty=SpectralExcess(),
    on="pretrained",
)

card = Card(
    title="Spectral-normalized identity prior (inspired by SNIP)",
    use_when="you fine-tune a transformer and want whole attention or feed-forward parts gone, while it trains",
    avoid_when="there is no training to make up for a missing part",
    deviations=(
        "Written from the abstract and accounts of the paper: branches whose output is small beside what it is added "
        "to go first, a few at a time until the budget is met, where the paper learns a threshold. Spectral norms are "
        "held down by a penalty; the paper divides weights by them. Single attention heads are granularity=Head() "
        "with a criterion of theirs."
    ),
    rows=(160,),
)
