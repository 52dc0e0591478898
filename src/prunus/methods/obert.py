"""The optimal BERT surgeon, in blocks of four weights."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import BlockObsFisher
from prunus.parts.granularity import Tile
from prunus.parts.reconstruct import FisherUpdate
from prunus.parts.schedule import Gradual

obert = Recipe(
    name="obert",
    source="Kurtic et al. 2022, EMNLP, arXiv:2203.07259",
    granularity=Tile(box=(1, 4, 1, 1)),
    criterion=BlockObsFisher(block=48, damp=1e-7),
    reconstruct=FisherUpdate(block=48, damp=1e-7),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.1, end=0.9, every=100, power=3.0),
    on="pretrained",
)

card = Card(
    title="oBERT (4-blocks)",
    use_when="a transformer is to run on a CPU whose kernels skip blocks of four weights, and you can fine-tune",
    avoid_when="kernels are larger than 1x1, or inputs no multiples of four: such weights stay whole",
    deviations=(
        "Fisher blocks of 48 weights, so that every block of four lies in one, for the paper's 50; single weights are "
        "replace(obert, granularity=Element()), the selection rule alone replace(obert, reconstruct=None). The cubic "
        "path starts at full density, without the paper's first jump, its distillation and its learning-rate restarts. "
        "Heads and embeddings that tie a table stay whole."
    ),
    rows=(223,),
)
