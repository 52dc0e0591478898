"""Movement pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import MovementGate
from prunus.parts.granularity import Element
from prunus.parts.schedule import MarkGradually

movement = Recipe(
    name="movement",
    source="Sanh, Wolf & Rush 2020, NeurIPS, arXiv:2005.07683",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=MarkGradually(begin=0.1, end=0.7, every=10, power=3.0),
    gate=MovementGate(),
    on="pretrained",
)

card = Card(
    title="Movement pruning",
    use_when="a pretrained network is fine-tuned to another task and high sparsity is wanted",
    avoid_when="there is no training to move the weights",
    deviations=(
        "The hard variant: the top v of every weight, v on the cubic path, chosen anew at every step. Masked "
        "weights keep their values, their scores go on changing, and they may return; the last step removes them. "
        "The path is a staircase of 10 steps, warm-up and cool-down are fractions of the run (10 % and 30 %). "
        "Distillation, which the paper adds, is recover=Distill(weight=0.5, throughout=True). Criterion "
        "MovementScore() on a Gradual schedule is the variant without return, with no gates."
    ),
    rows=(110,),
)
