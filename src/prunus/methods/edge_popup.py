"""Edge-popup: a subnetwork of a random network."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import SignedPopup
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

edge_popup = Recipe(
    name="edge_popup",
    source="Ramanujan et al. 2020, CVPR, arXiv:1911.13299",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=OneShot(at=1.0),
    gate=SignedPopup(),
)

card = Card(
    title="Edge-popup",
    use_when="you ask what a network can do with weights that were never trained, or want weights that a seed tells",
    avoid_when="you want the best accuracy: trained weights do better",
    deviations=(
        "Weights become the signed Kaiming constants of the paper's best networks; with gate=Popup() they keep the "
        "values they are given, which should be of Kaiming size (PyTorch's default is smaller and learns slower). "
        "Biases and normalizations keep theirs (the paper has none to train). The mask is the allocation's at every "
        "step, of equals the earlier unit stays, and a budget of any kind is met exactly."
    ),
    rows=(11,),
)
