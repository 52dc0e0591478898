"""Pruning by the signal-to-noise ratio of a variational posterior."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SignalToNoise
from prunus.parts.gate import WeightPosterior
from prunus.parts.granularity import Element
from prunus.parts.penalty import GaussianPrior
from prunus.parts.schedule import OneShot

bayes_by_backprop = Recipe(
    name="bayes_by_backprop",
    source="Blundell et al. 2015, ICML, arXiv:1505.05424",
    granularity=Element(),
    criterion=SignalToNoise(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.9),
    penalty=GaussianPrior(),
    gate=WeightPosterior(),
)

card = Card(
    title="Signal-to-noise ratio (Bayes by backprop)",
    use_when="the network is trained as a Bayesian one anyway",
    avoid_when="there are no steps for a posterior to be learned in",
    deviations=(
        "The Gaussian prior (the paper's best is a mixture of two). The lowest ratios go after training, and the "
        "last part of the steps trains what is left. Biases have no posterior. strength = 1e-4 stands for 10 000 "
        "training examples."
    ),
    rows=(),
)
