"""Dynamic pruning with feedback."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.gate import Straight
from prunus.parts.granularity import Element
from prunus.parts.schedule import Gradual, Marked

dpf = Recipe(
    name="dpf",
    source="Lin et al. 2020, ICLR, arXiv:2006.07253",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=GlobalRanking(),
    schedule=Marked(of=Gradual(every=16)),
    gate=Straight(),
)

card = Card(
    title="Dynamic pruning with feedback (DPF)",
    use_when="a network is trained once, from scratch or not, and wrongly pruned weights should find their way back",
    avoid_when="memory is short while training: all weights stay, and are all updated",
    deviations=(
        "What is masked after three quarters of the run is removed there, and the rest trained on; "
        "Marked(until=1.0) goes on renewing the mask to the end. Biases and normalizations are never masked."
    ),
    rows=(30,),
)
