"""D-Pruner: general and domain importance at once."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import DualImportance
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

d_pruner = Recipe(
    name="d_pruner",
    source="Zhang et al. 2024, Findings of NAACL, arXiv:2405.06275",
    granularity=Element(),
    criterion=DualImportance(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Dual pruning for a domain (D-Pruner)",
    use_when="a language model is to serve one domain and still speak: calib= is of the domain, general= of open text",
    avoid_when="gradients of the whole model do not fit into memory, or there is only one kind of text",
    deviations=(
        "Written from the paper's formulas, since its code was never published; general importance is 1/2 F w^2. Every "
        "layer has the same density."
    ),
    rows=(161,),
)
