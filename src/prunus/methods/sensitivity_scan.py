"""L1 filter pruning with densities from a sensitivity scan."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import SensitivityScan
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

sensitivity_scan = Recipe(
    name="sensitivity_scan",
    source="Li et al. 2017, ICLR, arXiv:1608.08710",
    granularity=Channel(),
    criterion=Magnitude(),
    allocate=SensitivityScan(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="L1 filter pruning with a sensitivity scan (PFEC)",
    use_when="layers differ in sensitivity and a few forwards per layer are affordable",
    avoid_when="there are very many layers, or what layers lose together is far from what they lose alone",
    deviations=(
        "Densities are computed (an equal rise of the loss) where the paper sets them by hand after looking at the "
        "scan, and the loss stands in for the accuracy. Coupled filters are scored by the sum of their norms."
    ),
    rows=(69,),
)
