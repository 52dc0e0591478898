"""Layer-adaptive progressive pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import LearnedGate
from prunus.parts.gate import LayerThreshold
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

lapp = Recipe(
    name="lapp",
    source="inspired by Zhai et al. 2023 (LAPP), arXiv:2309.14157",
    granularity=Channel(),
    criterion=LearnedGate(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.5),
    gate=LayerThreshold(),
)

card = Card(
    title="Layer-adaptive thresholds (inspired by LAPP)",
    use_when="you train from scratch, and layers should find their own widths early, by one number each",
    avoid_when="the published method is wanted: its functions and its bypasses are not here",
    deviations=(
        "Written from the abstract of the paper: a learned threshold for each layer, the loss and a constraint on what "
        "is left, a gradual path at the beginning of training. Its importance score, its mask and its weights of the "
        "two terms could not be read, and the light bypass that it adds to every layer is left out. The constraint "
        "counts units; LayerThreshold(weighs='weights') is for a budget in parameters, operations are not counted. "
        "The budget has the last word, over the whole network."
    ),
    rows=(218,),
)
