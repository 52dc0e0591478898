"""Subspace clustering of feature maps."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import SubspaceClusters
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.reconstruct import LeastSquares
from prunus.parts.schedule import OneShot

subspace_clustering = Recipe(
    name="subspace_clustering",
    source="Wang et al. 2018, arXiv:1803.05729",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=SubspaceClusters(),
    schedule=OneShot(),
    reconstruct=LeastSquares(),
    on="pretrained",
)

card = Card(
    title="Subspace clustering of feature maps",
    use_when="feature maps of a layer are combinations of each other, and you have unlabelled batches",
    avoid_when="layers are wider than some thousand channels",
    deviations=(
        "Which unit represents a cluster is not settled by what we could read of the paper: here the filter with the "
        "largest L1 norm. Feature maps are taken where they are read, behind normalization and nonlinearity."
    ),
    rows=(86,),
)
