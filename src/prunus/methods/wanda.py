"""Wanda."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import InputWeighted
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

wanda = Recipe(
    name="wanda",
    source="Sun et al. 2024, ICLR, arXiv:2306.11695",
    granularity=Element(),
    criterion=InputWeighted(),
    allocate=Uniform(within="row"),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="Wanda",
    use_when="you prune a trained transformer once, with a few unlabelled batches, and want its weights untouched",
    avoid_when="you can afford SparseGPT's update, or the network is small and convolutional: its rows differ in need",
    deviations=(
        "Goes through a model block by block, as the code does, and leaves what lies in no block (the output layer, "
        "the stem) as it is; sweep='model' scores everything on the dense network. For 2:4, allocate=NofM(2, 4). "
        "Weights stored as [in, out] (GPT-2's Conv1D) are compared along their outputs, where inputs make no "
        "difference: take allocate=Uniform() there."
    ),
    rows=(226,),
)
