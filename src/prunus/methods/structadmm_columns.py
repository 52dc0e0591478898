"""Shape columns by ADMM."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Uniform
from prunus.parts.criteria import L2Norm
from prunus.parts.granularity import Tile
from prunus.parts.penalty import Anchored
from prunus.parts.schedule import OneShot

structadmm_columns = Recipe(
    name="structadmm_columns",
    source="Zhang et al. 2018, arXiv:1807.11091",
    granularity=Tile((0, 1, 1, 1), skip_last=True),
    criterion=L2Norm(),
    allocate=Uniform(),
    schedule=OneShot(at=0.7),
    penalty=Anchored(rounds=3),
    on="pretrained",
)

card = Card(
    title="Shape columns by ADMM (StructADMM)",
    use_when="your convolutions run as matrix products, from which whole columns can be left out",
    avoid_when="your runtime computes convolutions directly",
    deviations=(
        "Rho is that of the paper and grows tenfold twice before the cut, with U at zero again each time, as "
        "in the released codes; Z and U are renewed every 100 steps instead of every few epochs. One position "
        "of the kernels of one input channel, in all filters of a layer, is a unit. Every layer keeps the "
        "same share."
    ),
    rows=(175,),
)
