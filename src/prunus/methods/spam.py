"""SpaM: priors that the marginal likelihood adapts, and the posterior they leave."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedPosteriorDamage
from prunus.parts.granularity import Element
from prunus.parts.penalty import PriorDecay
from prunus.parts.schedule import OneShot

spam = Recipe(
    name="spam",
    source="Dhahri et al. 2024, NeurIPS, arXiv:2402.15978",
    granularity=Element(),
    criterion=LearnedPosteriorDamage(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=1.0),
    penalty=PriorDecay(),
)

card = Card(
    title="SpaM with optimal posterior damage",
    use_when="the network is trained anyway, and its weights are to become prunable without any retraining",
    avoid_when="there are thousands of outputs (set probes), or the loss is no log-likelihood",
    deviations=(
        "A diagonal Laplace approximation, a prior for each weight: the paper's best without Kronecker factors; "
        "level='unit' and level='layer' are the coarser ones. Precisions are fitted on the calibration batches, to "
        "their stationary point instead of by a few steps of Adam, every 100 steps and from the first. examples=0 "
        "takes the calibration samples for the training set: say how many there are, in both parts. Biases and "
        "normalizations have no prior."
    ),
    rows=(154,),
)
