"""Global sparse momentum."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.prox import ActiveGradient
from prunus.parts.schedule import OneShot

gsm = Recipe(
    name="gsm",
    source="Ding et al. 2019, NeurIPS, arXiv:1909.12778",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    prox=ActiveGradient(),
    on="pretrained",
)

card = Card(
    title="Global sparse momentum",
    use_when="you can train long with weight decay and large momentum, and want a final cut that changes nothing",
    avoid_when="training is short: what is not trained must have time to decay",
    deviations=(
        "Ties go to the earlier weight, where the official code keeps all of them. Weight decay and momentum "
        "(0.98 and more in the paper) are your optimizer's: where decay is too weak for the number of "
        "steps, weights of equal worth go on taking turns and the cut is not lossless. Without training it is global "
        "magnitude pruning."
    ),
    rows=(19,),
)
