"""Truncated singular value decomposition."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SquaredMagnitude
from prunus.parts.granularity import Rank
from prunus.parts.prepare import Factorize
from prunus.parts.schedule import OneShot

svd_truncation = Recipe(
    name="svd_truncation",
    source="Denton et al. 2014, NeurIPS, arXiv:1404.0736; Zhang et al. 2015, TPAMI, arXiv:1505.06798",
    granularity=Rank(),
    criterion=SquaredMagnitude(),
    allocate=GlobalRanking(normalize="sum"),
    schedule=OneShot(),
    prepare=Factorize(split="in"),
    on="pretrained",
)

card = Card(
    title="Truncated SVD, by energy",
    use_when="weights are close to low rank, and narrower layers between the old ones are welcome",
    avoid_when="you can only afford a little: below about half of the components a layer is larger than it was",
    formula="sigma_k^2 / sum of the layer's sigma^2, kept globally",
    deviations=(
        "Layers compete by the share of their energy (squared singular values) that a component holds; the papers set "
        "ranks by hand or by the product of energies. Kernels are unfolded to [out, in*kh*kw]. Densities are relative "
        "to the factorized network, which is larger than the one given."
    ),
)
