"""Clustered connections (inspired by TraNNsformer)."""

from prunus.core.card import Card
from prunus.core.recipe import Recipe
from prunus.parts.allocation import Clustered, GlobalRanking
from prunus.parts.criteria import Magnitude
from prunus.parts.granularity import Element
from prunus.parts.schedule import Gradual

crossbar_clusters = Recipe(
    name="crossbar_clusters",
    source="inspired by Ankit et al. 2017, ICCAD, arXiv:1708.07949",
    granularity=Element(),
    criterion=Magnitude(),
    allocate=Clustered(GlobalRanking()),
    schedule=Gradual(),
    on="pretrained",
)

card = Card(
    title="Clustered connections (inspired by TraNNsformer)",
    use_when="you map layers to crossbars of bounded size, and connections outside of clusters cost most",
    avoid_when="you run on ordinary hardware: nothing gets faster",
    deviations=(
        "Rows and columns are clustered by spectral bisection, with the crossbar's size as the limit, and "
        "connections outside of clusters go first, while the network trains on. The paper's own clustering, its "
        "thresholds and its hardware model are not part of this recipe."
    ),
    rows=(196,),
)
