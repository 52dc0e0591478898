"""AlphaPruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import SpectralDensities
from prunus.parts.criteria import InputWeighted
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

alpha_pruning = Recipe(
    name="alpha_pruning",
    source="Lu et al. 2024, NeurIPS, arXiv:2410.10912",
    granularity=Element(),
    criterion=InputWeighted(),
    allocate=SpectralDensities(tau=0.3),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="AlphaPruning",
    use_when="a trained model loses most of its weights at once, and layer densities are to come from weights alone",
    avoid_when="the weights are not trained: their spectra have no heavy tails to tell layers apart",
    deviations=(
        "Wanda's choice within rows, as in the paper's main tables; any other criterion goes with the allocation. "
        "Densities per block (the mean of its weights' exponents); per='layer' is the paper's other form. The paper "
        "chooses tau per model and sparsity; 0.3 is its code's default."
    ),
    rows=(229,),
)
