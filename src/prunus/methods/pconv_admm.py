"""Kernel patterns and connectivity by ADMM."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import CROSSES, Connectivity, KernelPattern
from prunus.parts.criteria import SquaredMagnitude
from prunus.parts.granularity import Element
from prunus.parts.penalty import Anchored
from prunus.parts.schedule import OneShot

pconv_admm = Recipe(
    name="pconv_admm",
    source="Ma et al. 2020, AAAI, arXiv:1909.05073",
    granularity=Element(),
    criterion=SquaredMagnitude(),
    allocate=Connectivity(KernelPattern(patterns=CROSSES)),
    schedule=OneShot(at=0.7),
    penalty=Anchored(rounds=3),
    on="pretrained",
)

card = Card(
    title="Kernel patterns and connectivity, trained by ADMM (PCONV)",
    use_when="you have a compiler for 3x3 kernels of few shapes, and training to spend before the cut",
    avoid_when="your convolutions are not 3x3, or nothing that you run on reads patterns",
    deviations=(
        "Rho is that of the paper and grows tenfold twice before the cut, with U at zero again each time, as "
        "in the released codes; Z and U are renewed every 100 steps instead of every few epochs. One "
        "auxiliary variable holds both constraints, kernels first and then patterns, where the paper has one "
        "for each; for the patterns it is the exact projection. The four patterns are the centre with three "
        "of its neighbours. Layers without 3x3 kernels stay dense; the paper also cuts 1x1 connections."
    ),
    rows=(117,),
)
