"""Channel pruning by ADMM."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Channel
from prunus.parts.penalty import Anchored
from prunus.parts.schedule import OneShot

structadmm = Recipe(
    name="structadmm",
    source="Zhang et al. 2018, arXiv:1807.11091",
    granularity=Channel(),
    criterion=L2Norm(),
    allocate=Uniform(),
    schedule=OneShot(at=0.7),
    penalty=Anchored(rounds=3),
    on="pretrained",
)

card = Card(
    title="Structured pruning by ADMM (StructADMM)",
    use_when="you remove filters of a trained network and have training to spend before the cut",
    avoid_when="you cannot train: without training it is the l2 norm of filters",
    deviations=(
        "Rho is that of the paper and grows tenfold twice before the cut, with U at zero again each time, as "
        "in the released codes; Z and U are renewed every 100 steps instead of every few epochs. Filters, "
        "with all that is coupled to them; for the channels that a layer reads take granularity=Tile((0, 1, "
        "0, 0)), which leaves zeros. Every layer keeps the same share."
    ),
    rows=(175,),
)
