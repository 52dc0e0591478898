"""LLM-Pruner, block-wise."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import GroupTaylor
from prunus.parts.granularity import Middle
from prunus.parts.schedule import OneShot

llm_pruner = Recipe(
    name="llm_pruner",
    source="Ma et al. 2023, NeurIPS, arXiv:2305.11627",
    granularity=Middle(),
    criterion=GroupTaylor(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="LLM-Pruner",
    use_when="heads and neurons of a language model go by a few samples with gradients, its ends untouched",
    avoid_when="the model does not fit in memory with its gradients: `flap` asks for inputs only",
    deviations=(
        "Block-wise; dimensions of the stream (channel-wise) are replace(llm_pruner, granularity=Coupled()). Element- "
        "wise first order by default; vector, second and mixed orders are GroupTaylor(order=...). Of 32 layers the "
        "first 4 and the last 2 stay, of others as large a share. Groups of queries go together, as units. LoRA "
        "afterwards is left to other tools."
    ),
    rows=(230,),
)
