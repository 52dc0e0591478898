"""Bernoulli masks by policy gradients, from forward passes alone."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import PolicyGradient
from prunus.parts.granularity import Coupled
from prunus.parts.schedule import OneShot

reinforce_masks = Recipe(
    name="reinforce_masks",
    source="Gao et al. 2025, ACL, arXiv:2406.10576",
    granularity=Coupled(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    gate=PolicyGradient(),
    on="pretrained",
)

card = Card(
    title="Masks by policy gradients (no back-propagation)",
    use_when="a trained network is a black box to you: its loss can be computed, but not differentiated",
    avoid_when="gradients are at hand: estimates from losses need many more steps",
    deviations=(
        "Probabilities start equal (the paper may start from a criterion), and every unit counts the same. The "
        "average that losses are compared with holds those of earlier steps only. A session takes its steps from "
        "the loop around it, whose backward pass is not used. Losses are those of the task on calibration batches."
    ),
    rows=(151,),
)
