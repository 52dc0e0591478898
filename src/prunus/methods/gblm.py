"""GBLM-Pruner."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import GradientBlended
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

gblm = Recipe(
    name="gblm",
    source="Das, Sun, Ma & Shen 2023, arXiv:2311.04902",
    granularity=Element(),
    criterion=GradientBlended(alpha=100.0),
    allocate=Uniform(within="row"),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="GBLM-Pruner",
    use_when="you would use Wanda and can afford gradients of the loss through the whole model",
    avoid_when="two passes more are too many: regional gradients (wanda_pp) stay within a block",
    deviations=(
        "Gradients are those of the dense model, gathered before the first block, as in the code; inputs are those "
        "that the pruned blocks before give. alpha weighs lengths per sample, see the criterion. For 2:4, "
        "allocate=NofM(2, 4)."
    ),
    rows=(179, 227),
)
