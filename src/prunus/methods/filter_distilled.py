"""Filter pruning with knowledge transfer."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.recover import Distill
from prunus.parts.schedule import OneShot

filter_distilled = Recipe(
    name="filter_distilled",
    source="L1 filters: Li et al. 2017, arXiv:1608.08710; distillation: Hinton et al. 2015, arXiv:1503.02531",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=Uniform(),
    recover=Distill(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="L1 filter pruning with distillation (inspired by edge filter pruning with knowledge transfer)",
    use_when="you want a smaller classifier and fine-tune it with the original at hand as its teacher",
    avoid_when="you train nothing afterwards: without steps it is plain L1 filter pruning",
    deviations=(
        "The two ingredients of edge filter pruning with knowledge transfer (2022), of which no code is public; its "
        "incremental adaptation on the device is not part of it."
    ),
    rows=(143,),
)
