"""Uniform magnitude."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

magnitude_uniform = Recipe(
    name="magnitude_uniform",
    source="Han et al. 2015, NeurIPS, arXiv:1506.02626; per layer: Zhu & Gupta 2017, arXiv:1710.01878",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Uniform magnitude",
    use_when="every layer must shrink alike (a runtime that needs equal densities)",
    avoid_when="layers differ in redundancy: global or LAMP keeps more accuracy at high sparsity",
    deviations=(
        "Robust pruning (Sehwag et al. 2019, arXiv:1906.06110) is this recipe with an adversarial loss in the task, "
        "for the training before as well as after."
    ),
    rows=(70, 90),
)
