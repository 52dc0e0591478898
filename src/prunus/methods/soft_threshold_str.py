"""Soft threshold reparameterization."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import AboveThreshold
from prunus.parts.gate import SoftThresholding
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

soft_threshold_str = Recipe(
    name="soft_threshold_str",
    source="Kusupati et al. 2020, ICML, arXiv:2002.03231",
    granularity=Element(),
    criterion=AboveThreshold(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.75),
    gate=SoftThresholding(),
)

card = Card(
    title="Soft threshold reparameterization (STR)",
    use_when="layers should find their own density by the loss, in one training from scratch",
    avoid_when="the exact numbers of the paper are wanted: there start and decay set the density, not a budget",
    deviations=(
        "The budget decides how many stay, of those that clear their layer's threshold by most; what the "
        "thresholds alone would keep is recorded as open. Thresholds have an optimizer of their own, with start "
        "and decay for short runs."
    ),
    rows=(219,),
)
