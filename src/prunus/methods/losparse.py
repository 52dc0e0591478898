"""Low-rank plus structured sparse."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import GlobalRanking
from prunus.parts.criteria import SmoothedSensitivity
from prunus.parts.granularity import Remainder
from prunus.parts.prepare import Residue
from prunus.parts.schedule import Gradual

losparse = Recipe(
    name="losparse",
    source="Li et al. 2023, ICML, arXiv:2306.11222",
    granularity=Remainder(),
    criterion=SmoothedSensitivity(),
    allocate=GlobalRanking(),
    schedule=Gradual(begin=0.1, end=0.7, every=10, power=3.0, soft=True),
    prepare=Residue(),
    on="pretrained",
)

card = Card(
    title="LoSparse (low rank plus sparse)",
    use_when="a transformer is fine-tuned and much of it goes: what neurons share stays in a product of low rank",
    avoid_when="there is no training, or the network has to become smaller by ordinary means: rows stay as zeros",
    deviations=(
        "After the official code. Densities are of the rows of S alone, and what U and V hold, a twentieth of every "
        "weight, comes to it, as in the code; Budget(params=...) counts both. Rows count alike, where the code counts "
        "their weights. A layer of which no row is left is named as collapsed, though its product goes on. The "
        "last event holds the mask, and the moving average takes in every step. All linear maps and convolutions but "
        "the last are written as sums, in the code those of attention and feed-forward layers. Warm-up and cool-down "
        "are fractions of the run (10 % and 30 %), which the code sets for each data set. Distillation is "
        "recover=Distill(throughout=True)."
    ),
    rows=(224,),
)
