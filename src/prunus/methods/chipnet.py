"""Channels by logistic gates with a continuous Heaviside step."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import LogisticHeaviside
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

chipnet = Recipe(
    name="chipnet",
    source="Tiwari et al. 2021, ICLR, arXiv:2102.07156",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    gate=LogisticHeaviside(),
    on="pretrained",
)

card = Card(
    title="ChipNet",
    use_when="channels of a trained network are to be chosen under a budget with deterministic gates, then fine-tuned",
    avoid_when="the network must not be trained",
    deviations=(
        "The budget term counts channels; with LogisticHeaviside(weighs='weights') it counts the weights they own, "
        "one by one, for a budget in parameters or multiply-accumulates. The paper's terms in volume and in "
        "products of neighbouring widths are not there, but the final event meets any budget exactly. Gates act "
        "where a channel is read (the paper: after its normalization). It keeps the epoch of best validation "
        "accuracy; here it is the last."
    ),
    rows=(106,),
)
