"""REAP: router-weighted expert activation pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import RoutedNorm
from prunus.parts.granularity import Expert
from prunus.parts.schedule import OneShot

reap = Recipe(
    name="reap",
    source="Lasby et al. 2025, arXiv:2510.13999",
    granularity=Expert(),
    criterion=RoutedNorm(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Router-weighted expert activation pruning (REAP)",
    use_when="a language model with many experts must fit into less memory, and there is text like what it will see",
    avoid_when="the model has few experts, of which each token uses most: take their weights or channels instead",
    deviations=(
        "All mixtures are scored on the whole model, as in the code. Gates are those that the model's output has, with "
        "its own normalization and scaling. Experts that no calibration token reaches go first."
    ),
)
