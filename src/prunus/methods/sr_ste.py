"""N:M sparsity learned from scratch."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import NofM
from prunus.parts.criteria import Magnitude
from prunus.parts.gate import Reselected
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

sr_ste = Recipe(
    name="sr_ste",
    source="Zhou et al. 2021, ICLR, arXiv:2102.04010",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=NofM(n=2, m=4),
    schedule=OneShot(at=1.0),
    gate=Reselected(decay=2e-4),
)

card = Card(
    title="SR-STE (sparse-refined straight-through)",
    use_when="a network is trained for 2:4 kernels and one run has to do",
    avoid_when="the network is trained already and good: pruning and retraining (n_of_m) is enough there",
    deviations=(
        "Blocks run along the rows of [out, in*kh*kw], the official code's along the input channels of a position: "
        "NofM(2, 4, along='input')."
    ),
    rows=(120,),
)
