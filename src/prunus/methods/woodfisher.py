"""WoodFisher."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ObsFisher
from prunus.parts.granularity import Element
from prunus.parts.reconstruct import FisherUpdate
from prunus.parts.schedule import Gradual

woodfisher = Recipe(
    name="woodfisher",
    source="Singh & Alistarh 2020, NeurIPS, arXiv:2004.14340",
    granularity=Element(),
    criterion=ObsFisher(block=50, damp=1e-5),
    reconstruct=FisherUpdate(block=50, damp=1e-5),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.0, end=0.6, every=100, power=3.0),
    on="pretrained",
)

card = Card(
    title="WoodFisher",
    use_when="single weights of a trained network go while it is fine-tuned, and some curvature is affordable",
    avoid_when="there are fewer calibration samples than weights in a block by far: the inverse is then the damping's",
    deviations=(
        "Blocks of 50 weights (the paper's are larger, up to 20 000 for ResNet-50), inverted at once instead of by "
        "rank-one updates; the gradients are those of all calibration samples, and are gathered once to choose and "
        "once to move what stays. The selection rule alone is replace(woodfisher, reconstruct=None)."
    ),
    rows=(223,),
)
