"""N:M magnitude."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import NofM
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import OneShot

n_of_m = Recipe(
    name="n_of_m",
    source="Mishra et al. 2021, arXiv:2104.08378; Zhou et al. 2021, ICLR, arXiv:2102.04010",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=NofM(n=2, m=4),
    schedule=OneShot(),
    on="pretrained",
)

card = Card(
    title="N:M magnitude",
    use_when="you deploy on hardware with 2:4 kernels and large matrix products",
    avoid_when="you run on a CPU or at batch one: nothing gets faster",
    deviations=(
        'Blocks run along the rows of [out, in*kh*kw]; NofM(2, 4, along="input") is TensorRT\'s layout for '
        "convolutions. Retraining is yours to add (steps=N); other patterns are other numbers: NofM(4, 8)."
    ),
    rows=(120,),
)
