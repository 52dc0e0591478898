"""Decay pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Channel
from prunus.parts.prox import Decaying
from prunus.parts.schedule import Gradual, Marked

decay_pruning = Recipe(
    name="decay_pruning",
    source="inspired by Yang et al. 2024, arXiv:2406.03879",
    granularity=Channel(),
    criterion=L2Norm(),
    allocate=Uniform(),
    schedule=Marked(of=Gradual(power=1.0)),
    prox=Decaying(rectify=0.2),
    on="pretrained",
)

card = Card(
    title="Decay with self-rectification (inspired by the decay pruning method)",
    use_when="a pruned network does not recover well from units that vanish at once",
    avoid_when="you have no training budget",
    deviations=(
        "Marked units shrink by (n - 1) / n at each of the n steps left, and train on; they are left alone at "
        "steps at which descent would make them grow, and compete again at the next marking and at the cut. "
        "The paper puts norms on a line from where they began, and releases by two thresholds that could not "
        "be verified. More units are marked in equal portions over three quarters of the steps."
    ),
    rows=(198,),
)
