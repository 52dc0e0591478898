"""The experts that are chosen least often go."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import RoutedTokens
from prunus.parts.granularity import Expert
from prunus.parts.schedule import OneShot

expert_frequency = Recipe(
    name="expert_frequency",
    source="a baseline of Lasby et al. 2025, arXiv:2510.13999",
    granularity=Expert(),
    criterion=RoutedTokens(),
    allocate=Uniform(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Experts by frequency",
    use_when="you want a baseline, or the calibration text is just what the model will be used for",
    avoid_when="rarely used experts matter: reap weighs what they add when they are used",
    deviations="Every mixture keeps the same share.",
)
