"""Magnitude with thresholds relative to each layer's spread, pruned little by little."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import StdQuality
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Gradual

magnitude_std = Recipe(
    name="magnitude_std",
    source="Han et al. 2015, NeurIPS, arXiv:1506.02626",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=StdQuality(),
    schedule=Gradual(begin=0.0, end=0.75, every=100, power=1.0),
    on="pretrained",
)

card = Card(
    title="Iterative magnitude (Han et al.)",
    use_when=(
        "a trained network is to be pruned and retrained in turns, and its layers differ in the size of their weights"
    ),
    avoid_when=(
        "there are no steps for retraining, or layers of very different width make one quality factor a poor guide"
    ),
    deviations=(
        "The quality factor is the one that meets the density, the same in every layer, and sparsity grows in equal "
        "portions; the paper sets both by hand. Dropout rates are left as they are (the paper lowers them by the "
        "square root of the share of weights left)."
    ),
    rows=(47,),
)
