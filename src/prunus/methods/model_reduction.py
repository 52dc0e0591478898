"""Bayesian model reduction."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ModelReduction
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

model_reduction = Recipe(
    name="model_reduction",
    source="inspired by Beckers et al. 2022, arXiv:2210.09134",
    granularity=Element(),
    criterion=ModelReduction(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.0),
    on="pretrained",
)

card = Card(
    title="Bayesian model reduction (inspired by; Laplace posterior)",
    use_when="you want to know which weights the data do not ask for: scores below zero say so",
    avoid_when="a weight far from a Gaussian posterior matters, or there are thousands of outputs",
    deviations=(
        "The paper trains a variational posterior and prunes, again and again while training, what the evidence "
        "prefers pruned; here a Laplace approximation stands for the posterior (variational_model_reduction trains "
        "one), and the lowest scores go until the budget is met."
    ),
    rows=(180,),
)
