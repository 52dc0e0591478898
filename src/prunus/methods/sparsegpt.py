"""SparseGPT."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import ObsSaliency
from prunus.parts.granularity import Element
from prunus.parts.reconstruct import ObsUpdate
from prunus.parts.schedule import OneShot

sparsegpt = Recipe(
    name="sparsegpt",
    source="Frantar & Alistarh 2023, ICML, arXiv:2301.00774",
    granularity=Element(),
    criterion=ObsSaliency(damp=0.01),
    allocate=Uniform(),
    reconstruct=ObsUpdate(block=128, damp=0.01),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="SparseGPT",
    use_when="you prune a trained network once, with a few unlabelled batches and no training after it",
    avoid_when="you train on afterwards anyway: the update is then not worth its time",
    deviations=(
        "As in the code, all layers of a block go by what they are fed while it is whole; "
        "reconstruct=ObsUpdate(fed='pruned') goes by what the pruned layers before give, in a pass for each. "
        "What lies in no block (embeddings, the output layer) is left as it is, as in the code; sweep='model' prunes "
        "it too. For 2:4, allocate=NofM(2, 4)."
    ),
    rows=(124,),
)
