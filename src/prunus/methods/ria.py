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
    avoid_when="you need the channel permutation for N:M that the paper adds",
    deviations="Goes through a model block by block. No channel permutation.",
    rows=(227,),
)
