"""Kernel row pruning (KRP)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import NofM
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Tile
from prunus.parts.schedule import OneShot

krp = Recipe(
    name="krp",
    source="Sui et al. 2023, Sensors 23(2), 824",
    granularity=Tile((1, 1, 1, 0), kernel=(3, 3)),
    criterion=Magnitude(),
    allocate=NofM(1, 3),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Kernel row pruning (KRP)",
    use_when="you build hardware for 3x3 convolutions that reads one row of a kernel",
    avoid_when="your convolutions are not 3x3, or you run on ordinary hardware",
    deviations=(
        "Linear layers and other kernels stay dense: the paper prunes fully connected layers weight by weight. Its "
        "retraining (learning-rate tracking) and its quantization are not part of this recipe."
    ),
    rows=(119,),
)
