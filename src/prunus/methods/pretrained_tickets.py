"""Lottery tickets that are rewound to pre-trained weights."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Rounds

pretrained_tickets = Recipe(
    name="pretrained_tickets",
    source="Chen et al. 2020, NeurIPS, arXiv:2007.12223; vision: Chen et al. 2021, CVPR, arXiv:2012.06908; vision and "
    "language: Gan et al. 2022, AAAI, arXiv:2104.11832",
    granularity=Element(skip_last=True),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=Rounds(per_round=0.1),
    on="pretrained",
)

card = Card(
    title="Lottery tickets of pre-trained networks",
    use_when="you fine-tune a pre-trained network and want a mask that other tasks can be fine-tuned with as well",
    avoid_when="fine-tuning is expensive: it is done once per round",
    deviations=(
        "All rounds share the given steps. Embedding tables are not pruned (the BERT tickets prune them too). The last "
        "weight, the head of the task, stays dense. A relaxed ticket, 99 % of the dense accuracy, is the user's to "
        "judge: nothing here measures accuracy."
    ),
    rows=(55, 56, 57),
)
