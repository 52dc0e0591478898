"""FLAP, as its code compares heads and neurons."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import StandardFluctuation
from prunus.parts.granularity import Inner
from prunus.parts.prepare import Biased
from prunus.parts.reconstruct import BiasCompensation
from prunus.parts.schedule import OneShot

flap_heads = Recipe(
    name="flap_heads",
    source="An et al. 2024, AAAI, arXiv:2312.11983",
    granularity=Inner(),
    criterion=StandardFluctuation(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    prepare=Biased(),
    reconstruct=BiasCompensation(),
    on="pretrained",
)

card = Card(
    title="FLAP (head-wise, with new biases)",
    use_when="you remove heads and neurons of a language model from a few unlabelled batches; layers need no biases",
    avoid_when="the model has to stay loadable by code that makes layers without biases",
    deviations=(
        "Heads and neurons are standardized by channels and compared by one threshold, as in the official code; what "
        "a head counts for beside a neuron there (their weights) is what Budget(params=...) asks for. Budgets in "
        "units count each as one. Groups of queries go together, as units."
    ),
    rows=(232,),
)
