"""Optimal brain compression: ExactOBS."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import ObsSaliency
from prunus.parts.granularity import Element
from prunus.parts.reconstruct import ExactObs
from prunus.parts.schedule import OneShot

obc = Recipe(
    name="obc",
    source="Frantar, Singh & Alistarh 2022, NeurIPS, arXiv:2208.11580",
    granularity=Element(),
    criterion=ObsSaliency(damp=1e-4),
    allocate=Uniform(),
    reconstruct=ExactObs(damp=1e-4),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="OBC (ExactOBS)",
    use_when="layers have up to a few hundred inputs and every weight counts: the greedy optimum without training",
    avoid_when="layers are wide: its cost grows with the cube of the inputs for every row; SparseGPT is the fast form",
    deviations=(
        "Every layer has the same density; the paper also has a search over layers (SPDY) that is not part of this. "
        "Layers are fitted one after the other on inputs that the pruned ones before them give. For 2:4, "
        "allocate=NofM(2, 4); for blocks of four weights that leave together, granularity=Tile(box=(1, 4, 1, 1))."
    ),
    rows=(223,),
)
