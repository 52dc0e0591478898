"""Shallowing networks by linear probes."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ProbeGain
from prunus.parts.granularity import Block
from prunus.parts.recover import Distill
from prunus.parts.schedule import OneShot

layer_probes = Recipe(
    name="layer_probes",
    source="Chen & Zhao 2018, IEEE TPAMI",
    granularity=Block(),
    criterion=ProbeGain(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    recover=Distill(),
    on="pretrained",
)

card = Card(
    title="Layer pruning by linear probes",
    use_when="a deep classifier has more blocks than its features need: those that add no accuracy go whole",
    avoid_when="the task has no classes, or few calibration samples: accuracies then tie",
    deviations=(
        "Ridge probes in closed form instead of logistic regression. The budget says how many blocks stay; the paper "
        "removes those whose gain is below a threshold. Blocks that can be skipped, not single convolutions."
    ),
    rows=(89,),
)
