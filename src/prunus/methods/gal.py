"""Generative adversarial learning of a soft mask."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import SoftMask
from prunus.parts.granularity import Channel
from prunus.parts.recover import Adversary
from prunus.parts.schedule import OneShot

gal = Recipe(
    name="gal",
    source="Lin et al. 2019, CVPR, arXiv:1903.09291",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    gate=SoftMask(),
    recover=Adversary(),
    on="pretrained",
)

card = Card(
    title="Generative adversarial learning (GAL)",
    use_when="a trained classifier is to lose channels, and there are inputs but no labels",
    avoid_when="there is no training budget, or what the network puts out are no class scores",
    deviations=(
        "Channels; masks on whole residual branches are granularity=Branch(), not both at once. The paper removes what "
        "came to zero, whatever its number (recorded as open); here the budget decides. The mask makes a step after "
        "every 200 of the weights, as published, for tens of thousands of steps: shorter runs want SoftMask(wait=...) "
        "smaller. Fine-tuning with labels, which follows in the paper, is a training of yours; in a loop of your own "
        "the loss is session.loss(batch)."
    ),
    rows=(103,),
)
