"""Global magnitude."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

magnitude = Recipe(
    name="magnitude",
    source="Han et al. 2015, NeurIPS, arXiv:1506.02626; global form: See et al. 2016, CoNLL, arXiv:1606.09274",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Global magnitude",
    use_when="you have a trained model and want the strongest simple baseline; fine-tune afterwards",
    avoid_when="layers differ in weight scale by design, or a layer is tiny: it may be emptied",
    deviations=(
        "Han et al. threshold each layer at a multiple of its standard deviation; this is the global ranking "
        "that later work compares with."
    ),
    rows=(70,),
)
