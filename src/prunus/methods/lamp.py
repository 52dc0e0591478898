"""LAMP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import LAMP
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

lamp = Recipe(
    name="lamp",
    source="Lee et al. 2021, ICLR, arXiv:2010.07611",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=LAMP(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="LAMP",
    use_when="you want global magnitude without layer collapse and without a hyperparameter",
    avoid_when="sparsity is mild: it hardly differs from global magnitude",
    deviations=(
        "Ranks in float64, ties by index. The official code rounds the kept count to the nearest, "
        'LAMP(rounding="nearest").'
    ),
    rows=(81,),
)
