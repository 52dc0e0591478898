"""Channel pruning by LASSO."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LassoPath
from prunus.parts.granularity import Channel
from prunus.parts.reconstruct import LeastSquares
from prunus.parts.schedule import OneShot

channel_lasso = Recipe(
    name="channel_lasso",
    source="He, Zhang & Sun 2017, ICCV, arXiv:1707.06168",
    granularity=Channel(),
    criterion=LassoPath(),
    allocate=Uniform(),
    schedule=OneShot(),
    reconstruct=LeastSquares(),
    on="pretrained",
)

card = Card(
    title="Channel pruning (LASSO)",
    use_when="you cannot fine-tune: channels are chosen and rescaled to reproduce the next layer's output",
    avoid_when="layers are wider than some two thousand channels: the exact path takes long",
    deviations=(
        "The lasso path is followed exactly, over all positions; the paper bisects lambda on samples and lets "
        "the count exceed the target by a tolerance. Selection of all layers comes first, the least squares refit "
        "after it, layer by layer. The 3C variant (with factorized layers) and the paper's layer ratios are left out."
    ),
    rows=(102,),
)
