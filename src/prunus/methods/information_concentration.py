"""Information concentration."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import InformationConcentration
from prunus.parts.criteria import ShapleyValue
from prunus.parts.granularity import Channel
from prunus.parts.schedule import OneShot

information_concentration = Recipe(
    name="information_concentration",
    source="inspired by Chen & Wang 2024, TNNLS, arXiv:2408.16772",
    granularity=Channel(),
    criterion=ShapleyValue(),
    allocate=InformationConcentration(),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="Information concentration (inspired by Chen & Wang 2024)",
    use_when=(
        "you prune convolutions, can afford many forwards, and want widths and channels chosen for reasons that "
        "can be told"
    ),
    avoid_when="layers are wide: Shapley values take permutations * channels forwards per layer",
    deviations=(
        "Entropy, rank and Shapley values as in the paper; how entropy and rank are fused is not known to us, the"
        " harmonic mean of the two is used. Five permutations."
    ),
    rows=(173,),
)
