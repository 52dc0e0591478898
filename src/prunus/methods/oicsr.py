"""Out-in-channel sparsity regularization."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import OutInEnergy
from prunus.parts.granularity import Channel
from prunus.parts.penalty import CoupledLasso
from prunus.parts.schedule import Gradual

oicsr = Recipe(
    name="oicsr",
    source="Li et al. 2019, CVPR, arXiv:1905.11664",
    granularity=Channel(),
    criterion=OutInEnergy(),
    allocate=GlobalRanking(),
    schedule=Gradual(power=1.0),
    penalty=CoupledLasso(),
)

card = Card(
    title="Out-in-channel sparsity regularization (OICSR)",
    use_when="you train the network anyway and want both sides of a channel to vanish together",
    avoid_when="layers differ in weight scale by design: one ranking spans them all",
    deviations=(
        "Equal portions go at even distances until three quarters of the steps, with the penalty in between; the "
        "paper fixes what an iteration removes by its FLOPs. Filters that residual sums couple are one group with all "
        "of their readers. Scales and shifts of normalizations are left out of the norm."
    ),
    rows=(193,),
)
