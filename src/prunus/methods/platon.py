"""PLATON."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import ConfidenceBound
from prunus.parts.granularity import Element
from prunus.parts.schedule import Gradual

platon = Recipe(
    name="platon",
    source="Zhang et al. 2022, ICML, arXiv:2206.12562",
    granularity=Element(),
    criterion=ConfidenceBound(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.1, end=0.7, every=10, power=3.0, soft=True),
    on="pretrained",
)

card = Card(
    title="PLATON",
    use_when="a transformer is fine-tuned on small batches, whose gradients are noisy",
    avoid_when="there is no training: without steps there is no uncertainty to speak of",
    deviations=(
        "The moving averages take in every step; the official code first averages the sensitivity over the 10 steps "
        "between two prunings. The last event holds the mask, where the code goes on pruning softly at the final "
        "density. Warm-up and cool-down are fractions of the run (10 % and 30 %), which the paper chooses for each "
        "data set."
    ),
    rows=(224,),
)
