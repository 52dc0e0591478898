"""Optimal brain damage."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import DiagonalHessian
from prunus.parts.granularity import Element
from prunus.parts.schedule import Gradual

obd = Recipe(
    name="obd",
    source="LeCun, Denker & Solla 1989, NIPS",
    granularity=Element(),
    criterion=DiagonalHessian(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.0, end=0.75, every=100, power=1.0),
    on="pretrained",
)

card = Card(
    title="Optimal brain damage",
    use_when="the network is trained to a minimum, and second derivatives are affordable",
    avoid_when="it is not trained: away from a minimum curvature alone does not say what a weight is worth",
    deviations=(
        "The diagonal of the Hessian is an unbiased random estimate (ten probes per batch) instead of the paper's "
        "layer-by-layer recursion; its Levenberg-Marquardt form, for outputs at one position, is replace(obd, "
        'criterion=DiagonalFisher(fisher="gauss_newton")). Pruned and retrained in equal portions; the paper leaves '
        "portions and retraining to the user."
    ),
    rows=(68,),
)
