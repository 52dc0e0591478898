"""RIA."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import RelativeImportance
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

ria = Recipe(
    name="ria",
    source="Zhang et al. 2024, ICLR, Plug-and-Play: An Efficient Post-training Pruning Method for LLMs",
    granularity=Element(),
    criterion=RelativeImportance(),
    allocate=Uniform(within="row"),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="RIA (relative importance and activations)",
    use_when="you would use Wanda and whole input or output channels must not be emptied",
    avoid_when="you can afford SparseGPT's update of the weights that stay",
    deviations=(
        "Goes through a model block by block. For 2:4 with the paper's channel permutation, "
        "allocate=Permuted(NofM(2, 4)): an order for every layer, in which the masks are 2:4; weights stay where they "
        "are, and a kernel has to gather the inputs. prepare=Arranged(2, 4) with allocate=NofM(2, 4) moves channels "
        "for good instead, where what makes them can be moved along and the model is seen to compute the same "
        "(hidden neurons, residual streams)."
    ),
    rows=(227,),
)
