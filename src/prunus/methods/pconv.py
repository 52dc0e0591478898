"""Kernel patterns and connectivity."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import CROSSES, Connectivity, KernelPattern
from prunus.parts.criteria import SquaredMagnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

pconv = Recipe(
    name="pconv",
    source="Ma et al. 2020, AAAI, arXiv:1909.05073",
    granularity=Element(),
    criterion=SquaredMagnitude(),
    allocate=Connectivity(KernelPattern(patterns=CROSSES)),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Kernel patterns and connectivity (PCONV)",
    use_when="you have a compiler for 3x3 kernels of few shapes, and want accuracy near that of single weights",
    avoid_when="your convolutions are not 3x3, or nothing that you run on reads patterns",
    deviations=(
        "The selection: what the paper projects onto. Its training by ADMM is not part of this recipe, and neither "
        "are the compiler and its reordering of filters; retraining is yours to add (steps=N). The four patterns are "
        "the centre with three of its neighbours. Layers without 3x3 kernels stay dense; the paper also cuts 1x1 "
        "connections."
    ),
    rows=(117,),
)
