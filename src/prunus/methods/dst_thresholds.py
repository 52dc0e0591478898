"""Dynamic sparse training with trainable masked layers."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import AboveThreshold
from prunus.parts.gate import MaskingThreshold
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

dst_thresholds = Recipe(
    name="dst_thresholds",
    source="Liu et al. 2020, ICLR, arXiv:2005.06870",
    granularity=Element(),
    criterion=AboveThreshold(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.75),
    gate=MaskingThreshold(),
)

card = Card(
    title="Dynamic sparse training (trainable thresholds)",
    use_when="neurons and filters should find their own density, and masks follow every step",
    avoid_when="the exact numbers of the paper are wanted: there the penalty sets the density, not a budget",
    deviations=(
        "The budget decides how many stay, of those that clear their row's threshold by most; what the thresholds "
        "alone would keep is recorded as open. Thresholds have an optimizer of their own."
    ),
    rows=(32,),
)
