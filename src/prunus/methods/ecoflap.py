"""ECoFLaP."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import ForwardDensities
from prunus.parts.criteria import InputWeighted
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

ecoflap = Recipe(
    name="ecoflap",
    source="Sung, Yoon & Bansal 2024, ICLR, arXiv:2310.02998",
    granularity=Element(),
    criterion=InputWeighted(),
    allocate=ForwardDensities(above=0.1, eps=1e-3),
    schedule=OneShot(),
    sweep="blocks",
    on="pretrained",
)

card = Card(
    title="ECoFLaP (coarse to fine)",
    use_when="layers of very different worth (towers of a vision-language model) are pruned together, without backward",
    avoid_when="weights are stored in half precision: a step of 1e-3 gets lost in their rounding",
    deviations=(
        "The zeroth-order form, with Wanda's choice within rows. Every block keeps a number in proportion to how much "
        "the loss moves; no layer is sparser than the whole by more than 0.1, as in the official scripts."
    ),
    rows=(195, 229),
)
