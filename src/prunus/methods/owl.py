"""OWL."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import OutlierDensities
from prunus.parts.criteria import InputWeighted
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

owl = Recipe(
    name="owl",
    source="Yin et al. 2024, ICML, arXiv:2310.05175",
    granularity=Element(),
    criterion=InputWeighted(),
    allocate=OutlierDensities(times=5.0, spread=0.08),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="OWL (outlier-weighed layer-wise sparsity)",
    use_when="a language model loses more than half of its weights at once: some blocks bear much less than others",
    avoid_when="the model has few blocks, or all layers have to be 2:4, which leaves no density to choose",
    deviations=(
        "Wanda's choice within rows; with SparseGPT it is replace(sparsegpt, allocate=OutlierDensities(of=Uniform())). "
        "Densities are fixed from the dense model's activations, then blocks are pruned one after the other. Without "
        "blocks every layer has its own. Mixed N:M, a block's own n of 8: allocate=OutlierDensities(of=NofM(4, 8)). "
        "The paper also searches its two numbers, which is not part of this."
    ),
    rows=(229,),
)
