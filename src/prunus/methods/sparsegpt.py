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
    on="pretrained",
)

card = Card(
    title="SparseGPT",
    use_when="you prune a trained network once, with a few unlabelled batches and no training after it",
    avoid_when="the whole model does not fit in memory, or you train on afterwards anyway",
    deviations=(
        "Prunes every weight matrix that is seen, the classifier included (the code leaves embeddings and the output "
        "layer alone: Element(skip_last=True)). For 2:4, allocate=NofM(2, 4). The whole model is in memory; layers are "
        "pruned one after the other, each on inputs that the pruned ones before it give. Float64."
    ),
    rows=(124,),
)
