"""Discrimination-aware channel pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import DiscriminativeSelection
from prunus.parts.granularity import Channel
from prunus.parts.reconstruct import LeastSquares
from prunus.parts.schedule import OneShot

dcp = Recipe(
    name="dcp",
    source="Zhuang et al. 2018, NeurIPS, arXiv:1810.11809",
    granularity=Channel(),
    criterion=DiscriminativeSelection(),
    allocate=Uniform(),
    schedule=OneShot(),
    reconstruct=LeastSquares(),
    on="pretrained",
)

card = Card(
    title="Discrimination-aware channel pruning (DCP), with the final loss only",
    use_when="you have labels and want channels that serve both the next layer's output and the loss",
    avoid_when="layers are very wide: each channel takes a few passes over the calibration batches",
    deviations=(
        "No additional classifiers at intermediate layers and no fine-tuning with them: discrimination is that of the "
        "final loss. Every layer is selected with the others whole; weights of what stays are then fitted by least "
        "squares to the layer's output instead of by gradient descent on both losses."
    ),
    rows=(76,),
)
