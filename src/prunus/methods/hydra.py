"""HYDRA: pruning as a search for a robust loss."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import ScaledPopup
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

hydra = Recipe(
    name="hydra",
    source="Sehwag et al. 2020, NeurIPS, arXiv:2002.10509",
    granularity=Element(),
    criterion=LearnedGate(),
    allocate=Uniform(),
    schedule=OneShot(at=0.2),
    gate=ScaledPopup(),
    on="pretrained",
)

card = Card(
    title="HYDRA",
    use_when="a robustly trained network is to be pruned: the mask is learned under the loss you train with",
    avoid_when="you have the plain loss only: then it is edge-popup on a trained network",
    deviations=(
        "The pruning step, with scores that start from the scaled weights, and the fine-tuning after it. That the "
        "loss is robust (adversarial, certified) is up to the task and the training loop, for both. The paper "
        "searches for 20 epochs and fine-tunes for 100; here it is the first fifth of the steps. Normalizations and "
        "biases stay as they are during the search, running statistics go on."
    ),
    rows=(139,),
)
