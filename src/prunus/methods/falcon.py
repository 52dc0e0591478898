"""FALCON, with magnitudes."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import TwoConstraint
from prunus.parts.criteria import SquaredMagnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

falcon = Recipe(
    name="falcon",
    source="Meng et al. 2024, AISTATS, arXiv:2403.07094",
    granularity=Element(),
    criterion=SquaredMagnitude(),
    allocate=TwoConstraint(share=0.5),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="FALCON's selection under two budgets",
    use_when="both the number of weights and their multiply-accumulates are limited",
    avoid_when="only one of the two is: a global ranking is the same then",
    deviations=(
        "The paper's integer program with squared magnitudes as the worth of a weight (its generalized magnitude "
        "pruning). The local quadratic model of the loss, whose weights are updated in turn with the selection, is "
        "not here."
    ),
    rows=(159,),
)
