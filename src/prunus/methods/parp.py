"""Prune, adjust, re-prune."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Readjusted

parp = Recipe(
    name="parp",
    source="Lai et al. 2021, NeurIPS, arXiv:2106.05933",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=Readjusted(every=50),
    on="pretrained",
)

card = Card(
    title="PARP (prune, adjust, re-prune)",
    use_when="a pretrained network is fine-tuned to a task anyway, once",
    avoid_when="it is trained from scratch, or the masks should not move",
    deviations=(
        "The learning-rate schedule of the fine-tuning is yours. Every weight has the same density; the last re- "
        "pruning is at the end and holds."
    ),
    rows=(112,),
)
