"""SiPP, deterministic."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import EmpiricalSensitivity
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

sipp = Recipe(
    name="sipp",
    source="Baykal, Liebenwein et al. 2019, arXiv:1910.05422",
    granularity=Element(),
    criterion=EmpiricalSensitivity(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="SiPP (deterministic)",
    use_when="you have some unlabelled inputs and want a bound on what every neuron loses",
    avoid_when="the calibration set is large: every product of every layer is compared",
    deviations=(
        "Only the deterministic variant: the sum of the error bounds of all neurons is least where the smallest "
        "sensitivities of the whole network go. The sampling variants, which reweight what they draw, are not here."
    ),
    rows=(167,),
)
