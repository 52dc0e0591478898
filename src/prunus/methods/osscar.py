"""OSSCAR."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import ObsSaliency
from prunus.parts.granularity import Coupled
from prunus.parts.reconstruct import Osscar
from prunus.parts.schedule import OneShot

osscar = Recipe(
    name="osscar",
    source="Meng et al. 2024, ICML, arXiv:2403.12983",
    granularity=Coupled(),
    criterion=ObsSaliency(damp=1e-4),
    allocate=Uniform(),
    reconstruct=Osscar(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="OSSCAR",
    use_when="you remove channels, neurons and heads at once, with a few unlabelled batches and no training after it",
    avoid_when="most channels have several readers (residual streams): there weights are fitted, nothing is swapped",
    deviations=(
        "Channels that several layers read are those of least summed OBS saliency, refitted by least squares. Damping "
        "is relative to the inputs' mean square and pulls to the weights as they were."
    ),
    rows=(189,),
)
