"""PruneFL, without the federation."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude, SquaredGradientPerMac
from prunus.parts.granularity import Element
from prunus.parts.growth import GainPerMac
from prunus.parts.schedule import PruneAndGrow

prunefl = Recipe(
    name="prunefl",
    source="Jiang et al. 2022, IEEE TNNLS, arXiv:1909.12326",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=PruneAndGrow(every=250, until=1.0, drop=0.3, jointly=True),
    start=SquaredGradientPerMac(),
    grow=GainPerMac(),
)

card = Card(
    title="PruneFL, the adaptive pruning of one model",
    use_when="you train sparse and a weight of an early convolution costs more than one of a linear layer",
    avoid_when="you look for federated learning itself: clients, rounds and their averages are not part of it",
    deviations=(
        "No federation: gradients are those of the training step at hand, the paper's are gathered from clients over "
        "rounds. A weight takes its multiply-accumulates and a constant, `transfer`; the paper measures seconds. As "
        "many weights are added as were dropped, best ratios first; the paper adds until the ratio of sums would fall, "
        "so that the size adapts. The share dropped decays by cosine, there by half every 10000 rounds."
    ),
    rows=(45,),
)
