"""Prune, adjust, re-prune, ever more."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Readjusted

parp_progressive = Recipe(
    name="parp_progressive",
    source="Lai et al. 2021, NeurIPS, arXiv:2106.05933",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=Readjusted(every=50, first=0.5),
    on="pretrained",
)

card = Card(
    title="PARP-P (progressive)",
    use_when="PARP at high sparsity, where one cut is too deep",
    avoid_when="the sparsity is moderate: PARP is simpler and as good",
    deviations=(
        "The removed share grows linearly from half of the final one to all of it; the paper raises it in a few "
        "steps that are chosen by task."
    ),
    rows=(112,),
)
