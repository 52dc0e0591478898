"""Optimal posterior damage."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import PosteriorDamage
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

opd = Recipe(
    name="opd",
    source="Dhahri et al. 2024, NeurIPS, arXiv:2402.15978",
    granularity=Element(),
    criterion=PosteriorDamage(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.0),
    on="pretrained",
)

card = Card(
    title="Optimal posterior damage (the score of SpaM)",
    use_when="a trained network is pruned once, and weights of all layers must be comparable",
    avoid_when="there are thousands of outputs: take PosteriorDamage(probes=...)",
    deviations=(
        "The score alone. SpaM trains the network with priors that the marginal likelihood adapts, down to one for "
        "each weight; here the network is as it was trained, and one precision per layer is fitted to it "
        "afterwards; spam is the whole. The number of training examples is that of the calibration samples unless "
        "PosteriorDamage(examples=...) says it."
    ),
    rows=(154,),
)
