"""Rate-distortion pruning."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import OutputDistortion
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

output_distortion = Recipe(
    name="output_distortion",
    source="Gao, Wang & Oh 2018, arXiv:1810.06401",
    granularity=Element(),
    criterion=OutputDistortion(),
    allocate=GlobalRanking(),
    schedule=OneShot(at=0.0),
    on="pretrained",
)

card = Card(
    title="Rate-distortion pruning",
    use_when="there are inputs but no labels, and the outputs are to stay what they are",
    avoid_when="there are thousands of outputs: take OutputDistortion(probes=...)",
    deviations=(
        "The pruning half of the paper, with the diagonal of its weight importance matrix; its quantization by "
        "weighted clustering is not in here. Ranked over the whole network; the paper also prunes layer by layer."
    ),
    rows=(181,),
)
