"""Magnitude pruning recovered by distillation."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.recover import Distill
from prunus.parts.schedule import OneShot

distilled_magnitude = Recipe(
    name="distilled_magnitude",
    source="Chen, Chen, Xi & Le 2022, Complex & Intelligent Systems 8:709-718; Hinton et al. 2015, arXiv:1503.02531",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    recover=Distill(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Magnitude with knowledge distillation",
    use_when="you fine-tune a pruned classifier and the dense one is there to learn from",
    avoid_when="you train nothing afterwards: without steps it is plain magnitude pruning",
    deviations="The teacher is the network as it was before pruning. Needs outputs that are logits.",
    rows=(138,),
)
