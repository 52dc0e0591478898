"""Hybrid efficient structured sparse optimizer (the latest only-train-once)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import MixedSalience
from prunus.parts.granularity import Channel
from prunus.parts.prox import Decaying
from prunus.parts.schedule import MarkAndCut

hesso = Recipe(
    name="hesso",
    source="Chen et al. 2024, arXiv:2409.09085",
    granularity=Channel(),
    criterion=MixedSalience(),
    allocate=GlobalRanking(),
    schedule=MarkAndCut(),
    prox=Decaying(),
)

card = Card(
    title="HESSO (only train once, latest version)",
    use_when="units are to fade away in training, a few more in every period, with nothing to tune",
    avoid_when="you have no training budget",
    deviations=(
        "Gradients of the five measures are those of the calibration batches at the start of each period; the official "
        "code takes the optimizer's step at hand. Fading scales what makes a unit (weights, normalization, bias). When "
        "periods begin and end is for the user to say there; here they are five, from a tenth of the steps to six "
        "tenths. The corrective variant (HESSO-CRIC) is not part of it."
    ),
    rows=(221,),
)
