"""BESA."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import LearnedRows
from prunus.parts.criteria import InputWeighted
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

besa = Recipe(
    name="besa",
    source="Xu et al. 2024, ICLR, arXiv:2402.16880",
    granularity=Element(),
    criterion=InputWeighted(),
    allocate=LearnedRows(step=0.01, rounds=1),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="BESA (block-wise learned sparsity)",
    use_when="you would use Wanda, have many calibration batches, and can afford a backward pass through each block",
    avoid_when="there are only a few batches: with one step for each of them the rows hardly come to differ",
    deviations=(
        "Every row learns its own sparsity (the paper's row-wise form; its code's default is one per layer). AdamW at "
        "0.01, the code's alternative to Prodigy, whose step size is found by itself. What was learned is scaled to "
        "the density asked for, which every block meets to the unit; the code takes what comes out. No joint "
        "quantization."
    ),
    rows=(228,),
)
