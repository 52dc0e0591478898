"""An information bottleneck under a budget."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import ConstrainedBottleneck
from prunus.parts.granularity import Coupled
from prunus.parts.schedule import OneShot

vtrans = Recipe(
    name="vtrans",
    source="inspired by Dutta, Gupta & Agarwal 2024, arXiv:2406.05276",
    granularity=Coupled(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.75),
    gate=ConstrainedBottleneck(),
    on="pretrained",
)

card = Card(
    title="VIB masks under a constraint (inspired by VTrans)",
    use_when="heads, hidden neurons and widths of a fine-tuned transformer are to compete for one budget",
    avoid_when="there is no training, or you need whole layers gone",
    deviations=(
        "Masks on heads, hidden neurons and those embedding dimensions that can go exactly; not on whole layers. "
        "How the constraint is made smooth is ours (the expected share of the weights), and multipliers for it and "
        "its square rise while training. Distillation, in the paper all along, is recover=Distill(throughout=True). "
        "The faster variants (masks alone, a part of the data) are not in here."
    ),
    rows=(201,),
)
