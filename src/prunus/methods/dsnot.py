"""DSnoT."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import InputWeighted
from prunus.parts.granularity import Element
from prunus.parts.reconstruct import ExpectedErrorSwaps
from prunus.parts.schedule import OneShot

dsnot = Recipe(
    name="dsnot",
    source="Zhang et al. 2024, ICLR, arXiv:2310.08915",
    granularity=Element(),
    criterion=InputWeighted(),
    allocate=Uniform(within="row"),
    reconstruct=ExpectedErrorSwaps(),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="DSnoT (dynamic sparse no training)",
    use_when="you want a better mask for a trained transformer, of the same size and without touching weights",
    avoid_when="inputs have no mean to speak of (behind a LayerNorm without shift): no expected error is to lower",
    deviations=(
        "Starts from Wanda's masks; the paper also from magnitude's and SparseGPT's (another criterion=). Swaps single "
        "weights within rows; patterns keep their masks."
    ),
    rows=(227,),
)
