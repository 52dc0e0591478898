"""Bayesian model reduction of a variational posterior."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ReducedEvidence
from prunus.parts.gate import WeightPosterior
from prunus.parts.granularity import Element
from prunus.parts.penalty import GaussianPrior
from prunus.parts.schedule import Gradual

variational_model_reduction = Recipe(
    name="variational_model_reduction",
    source="Beckers et al. 2022, arXiv:2210.09134",
    granularity=Element(),
    criterion=ReducedEvidence(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.2, end=0.8, every=100, power=1.0),
    penalty=GaussianPrior(),
    gate=WeightPosterior(),
)

card = Card(
    title="Bayesian model reduction (variational posterior)",
    use_when=(
        "the network is trained as a Bayesian one anyway, and weights are to go that the evidence does not ask for"
    ),
    avoid_when="there are no steps for a posterior to be learned in: take model_reduction",
    deviations=(
        "A Gaussian posterior over single weights, trained by draws of them, and the closed-form change of the "
        "evidence when the prior of a weight shrinks to zero; again and again while training, as in the paper. The "
        "budget, not the sign of that change, says when to stop. Biases have no posterior. The prior is fixed; "
        "strength = 1e-4 stands for 10 000 training examples: set it to one over yours, in both parts."
    ),
    rows=(180,),
)
