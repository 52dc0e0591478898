"""Kernel patterns by frequency, by ADMM."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import KernelPattern
from prunus.parts.criteria import SquaredMagnitude
from prunus.parts.granularity import Element
from prunus.parts.penalty import Anchored
from prunus.parts.schedule import OneShot

pattern_library_admm = Recipe(
    name="pattern_library_admm",
    source="Ma et al. 2020, ECCV, arXiv:2001.07710; natural patterns: Niu et al. 2020, ASPLOS, arXiv:2001.00138",
    granularity=Element(),
    criterion=SquaredMagnitude(),
    allocate=KernelPattern(count=8),
    schedule=OneShot(at=0.7),
    penalty=Anchored(rounds=3),
    on="pretrained",
)

card = Card(
    title="Kernel patterns by frequency, trained by ADMM",
    use_when="you have a compiler for 3x3 kernels of a handful of shapes, and training to spend before the cut",
    avoid_when="your convolutions are not 3x3, or nothing that you run on reads patterns",
    deviations=(
        "Rho is that of the paper and grows tenfold twice before the cut, with U at zero again each time, as "
        "in the released codes; Z and U are renewed every 100 steps instead of every few epochs. The library "
        "is the eight most frequent patterns of the weights at hand, looked up anew whenever Z is; the papers "
        "fix it once, and arrive at it through image filters. Kernels are removed as well with "
        "Connectivity(KernelPattern()). Layers without 3x3 kernels stay dense."
    ),
    rows=(118,),
)
