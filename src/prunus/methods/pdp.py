"""Parameter-free differentiable pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.gate import SoftBoundary
from prunus.parts.granularity import Element
from prunus.parts.schedule import Gradual, Marked

pdp = Recipe(
    name="pdp",
    source="Cho, Adya & Naik 2023, NeurIPS, arXiv:2305.11203",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=Marked(of=Gradual(begin=0.1, end=0.75, power=1.0)),
    gate=SoftBoundary(),
)

card = Card(
    title="Parameter-free differentiable pruning (PDP)",
    use_when="weights should choose sides by the loss, without any parameter more",
    avoid_when="training time is short: the boundary is found anew at every step",
    deviations=(
        "Sparsity grows linearly over fixed fractions of the run, by a global ranking each time; the paper fixes "
        "the layers' shares when pruning starts. Kept weights take the values they were used with."
    ),
    rows=(218,),
)
