"""Kernel patterns by frequency."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import KernelPattern
from prunus.parts.criteria import SquaredMagnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

pattern_library = Recipe(
    name="pattern_library",
    source="Ma et al. 2020, ECCV, arXiv:2001.07710; natural patterns: Niu et al. 2020, ASPLOS, arXiv:2001.00138",
    granularity=Element(),
    criterion=SquaredMagnitude(),
    allocate=KernelPattern(count=8),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Kernel patterns by frequency",
    use_when="you have a compiler for 3x3 kernels of a handful of shapes, and the network may choose the shapes",
    avoid_when="your convolutions are not 3x3, or nothing that you run on reads patterns",
    deviations=(
        "The eight patterns are the most frequent ones of the network's own kernels (the centre and the three "
        "largest other entries); the paper arrives at its library through image filters. The training by ADMM is not "
        "part of this recipe; kernels are removed as well with Connectivity(KernelPattern()). Layers without 3x3 "
        "kernels stay dense."
    ),
    rows=(118,),
)
