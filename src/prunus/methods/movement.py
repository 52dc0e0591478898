"""Movement pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import MovementScore
from prunus.parts.granularity import Element
from prunus.parts.schedule import Gradual

movement = Recipe(
    name="movement",
    source="Sanh, Wolf & Rush 2020, NeurIPS, arXiv:2005.07683",
    granularity=Element(),
    criterion=MovementScore(),
    allocate=Uniform(),
    schedule=Gradual(begin=0.1, end=0.8, every=10, power=3.0),
    on="pretrained",
)

card = Card(
    title="Movement pruning (hard, without return)",
    use_when="a pretrained network is fine-tuned to another task and high sparsity is wanted",
    avoid_when="there is no training to move the weights",
    deviations=(
        "A pruned weight is zero and stays so; in the paper it keeps its value behind the mask, its score goes on "
        "changing, and it may return. The hard variant (top v of every weight on a cubic path); the soft one, with a "
        "threshold and a penalty on the scores, and distillation are not in here. Masks change every 10 steps instead "
        "of at every step. Without training steps it is a signed first-order score on the calibration batches."
    ),
    rows=(110,),
)
