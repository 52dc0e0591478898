"""Wanda++: regional gradient scores."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import RegionallyBlended
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

wanda_pp = Recipe(
    name="wanda_pp",
    source="Yang et al. 2025, ACL Findings, arXiv:2503.04992",
    granularity=Element(),
    criterion=RegionallyBlended(alpha=100.0),
    allocate=Uniform(within="row"),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="Wanda++ (regional gradient score)",
    use_when="you would use Wanda, and a backward pass through one block at a time is affordable",
    avoid_when="you want the paper's whole method: its regional optimizer moves weights, which is not part of this",
    deviations=(
        "The paper's score without its second half, the regional optimizer (five rounds of pruning a block again and "
        "fitting its weights to its dense output): the paper's own ablation 'RGS'. Without a public official code, the "
        "score is the paper's formula. For 2:4, allocate=NofM(2, 4)."
    ),
    rows=(227,),
)
