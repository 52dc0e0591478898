"""Magnitude pruning with least-squares reconstruction."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.reconstruct import LeastSquares
from prunus.parts.schedule import OneShot

least_squares = Recipe(
    name="least_squares",
    source="Hubara et al. 2021, ICML, arXiv:2102.08124; He et al. 2017, ICCV, arXiv:1707.06168, eq. 3",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Uniform(),
    reconstruct=LeastSquares(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Magnitude with least-squares reconstruction",
    use_when="you want the best weights that a magnitude mask allows, layer by layer, from a few unlabelled batches",
    avoid_when="layers have thousands of inputs: every row is solved on its own; ObsUpdate is the fast approximation",
    deviations=(
        "The baseline that post-training papers compare with, solved exactly. Hubara et al. minimize the same error by "
        "gradient steps."
    ),
)
